"""A Responses request as a chat request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from cortex_core.envelopes.openai_responses import (
    LOGPROBS,
    ResponsesRequest,
    decode_responses_request,
)
from cortex_core.envelopes.parameters import refusing_depth
from cortex_core.errors import InvalidRequest, NotFound, UnsupportedParameter
from cortex_core.translate.responses import ResponsesTranslation
from cortex_core.translate.responses_input import Item, chat_messages, unseen_outputs
from cortex_core.translate.responses_tools import function_name, offered

__all__ = ["Memory", "NoMemory", "translate_responses"]

_encode = msgspec.json.Encoder().encode

# A response holds its request's tools. What tells or keeps it nests them deeper than they came, and
# is called from deeper down.
_SPARE_DEPTH = 64


class Memory(Protocol):
    """What is stored of responses; None for what is not, or no longer."""

    def items(self, response: str) -> list[Item] | None:
        """The whole conversation up to and with this response, oldest first."""
        ...

    def item(self, name: str) -> Item | None: ...

    def keep(self, response: dict[str, Any], conversation: list[Item]) -> None:
        """Store a response that has come to its end, and what it answered. Called before anybody
        is told of that end."""
        ...


class NoMemory:
    """Where nothing is stored."""

    def items(self, response: str) -> list[Item] | None:
        return None

    def item(self, name: str) -> Item | None:
        return None

    def keep(self, response: dict[str, Any], conversation: list[Item]) -> None:
        pass


_NOTHING = NoMemory()


@refusing_depth()
def translate_responses(
    body: bytes, memory: Memory = _NOTHING, *, created_at: float = 0.0
) -> ResponsesTranslation:
    """`created_at`: Unix seconds. Raises InvalidJson, InvalidRequest, UnsupportedParameter or
    NotFound, each naming the parameter."""
    request, ignored = decode_responses_request(body)
    given = _items(request.input)
    before = _before(request, memory)
    chat: dict[str, Any] = {"model": request.model}
    chat["messages"] = _system(request) + chat_messages(before, memory.item, "previous_response_id")
    chat["messages"] += chat_messages(given, memory.item)
    if not chat["messages"]:
        raise InvalidRequest("input: all of it is empty", param="input")
    ignored += [f"input.output.{kind}" for kind in unseen_outputs(given)]
    offer = offered(request.tools)
    ignored += offer.ignored
    if offer.functions:
        chat["tools"] = offer.functions
        chat["tool_choice"] = _choice(request, chat)
        if request.parallel_tool_calls is not None:
            chat["parallel_tool_calls"] = request.parallel_tool_calls
    elif request.tool_choice not in (None, "auto", "none"):
        raise InvalidRequest(
            "tool_choice: no tools are offered to choose from", param="tool_choice"
        )
    else:
        names = ("tool_choice", "parallel_tool_calls")
        ignored += [name for name in names if getattr(request, name) is not None]
    for theirs, ours in (
        ("max_output_tokens", "max_completion_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
    ):
        value = getattr(request, theirs)
        if value is not None:
            chat[ours] = value
    if request.reasoning is not None and request.reasoning.effort is not None:
        chat["reasoning_effort"] = request.reasoning.effort
    if LOGPROBS in request.include:
        chat["logprobs"] = True
        chat["top_logprobs"] = request.top_logprobs or 0
    if form := _format(request):
        chat["response_format"] = form
    if request.stream:
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    translation = ResponsesTranslation(
        request,
        _encode(chat),
        ignored=tuple(ignored),
        conversation=before + given,
        offer=offer,
        created_at=created_at,
        keep=memory.keep if request.store else None,
    )
    _check_depth(translation.response)
    return translation


def _check_depth(response: dict[str, Any]) -> None:
    """Raises RecursionError."""
    told: Any = response
    for _ in range(_SPARE_DEPTH):
        told = [told]
    _encode(told)


def _items(given: str | list[Item]) -> list[Item]:
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}] if given else []
    return given


def _before(request: ResponsesRequest, memory: Memory) -> list[Item]:
    name = request.previous_response_id
    if name is None:
        return []
    items = memory.items(name)
    if items is None:
        raise NotFound(
            f"previous_response_id: no response {name!r} is stored", param="previous_response_id"
        )
    return items


def _system(request: ResponsesRequest) -> list[dict[str, Any]]:
    return [{"role": "system", "content": request.instructions}] if request.instructions else []


def _choice(request: ResponsesRequest, chat: dict[str, Any]) -> Any:
    """Of the chat; narrows its tools where only some are allowed."""
    choice = "auto" if request.tool_choice is None else request.tool_choice
    if isinstance(choice, str):
        if choice in ("auto", "none", "required"):
            return choice
        raise InvalidRequest(
            f"tool_choice: expected auto, none, required or an object, got {choice!r}",
            param="tool_choice",
        )
    kind = choice.get("type")
    if kind in ("function", "custom"):
        return {"type": "function", "function": {"name": _chosen(choice)}}
    if kind == "allowed_tools":
        allowed = {_chosen(tool) for tool in _objects(choice.get("tools"))}
        chat["tools"] = [tool for tool in chat["tools"] if tool["function"]["name"] in allowed]
        if chat["tools"] and choice.get("mode") in ("auto", "required"):
            return choice["mode"]
        raise InvalidRequest(
            "tool_choice: allowed_tools needs a mode (auto or required) and offered tools",
            param="tool_choice",
        )
    raise UnsupportedParameter(f"tool_choice: type {kind!r} is unsupported", param="tool_choice")


def _chosen(tool: Mapping[str, Any]) -> str:
    """What the chat calls it; nothing has an empty name."""
    return function_name(str(tool.get("name") or ""), str(tool.get("namespace") or ""))


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _format(request: ResponsesRequest) -> dict[str, Any] | None:
    form = request.text.format if request.text else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    schema = {"name": form.name, "schema": form.schema, "strict": form.strict}
    return {"type": "json_schema", "json_schema": schema}

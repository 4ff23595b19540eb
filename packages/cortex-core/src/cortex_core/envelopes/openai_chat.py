"""`POST /v1/chat/completions`: the request, the whole answer, and the chunks of a stream."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cortex_core.envelopes.constraints import (
    ConstrainedParameters,
    check_constraints,
    constraints_without_effect,
)
from cortex_core.envelopes.logprobs import ChoiceLogprobs
from cortex_core.envelopes.parameters import decode_request
from cortex_core.envelopes.sampling import check_ranges
from cortex_core.envelopes.usage import UsageReport
from cortex_core.errors import InvalidRequest, UnsupportedParameter

__all__ = [
    "IGNORED_PARAMETERS",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatRequest",
    "Choice",
    "ChoiceDelta",
    "ChunkChoice",
    "FinishReason",
    "FunctionCall",
    "FunctionCallDelta",
    "Message",
    "MessageShape",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "ToolDefinition",
    "UsageReport",
    "check_messages",
    "decode_chat_request",
    "without_effect_on_prompt",
]

FinishReason = Literal["stop", "length", "tool_calls"]

IGNORED_PARAMETERS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""Defined by the vendor, without effect on what a local model answers."""


class FunctionDefinition(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: FunctionDefinition


class _ChosenFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class ToolChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This tool and no other."""

    type: Literal["function"]
    function: _ChosenFunction


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str | dict[str, Any] = ""


class _CalledTool(msgspec.Struct, frozen=True):
    function: _CalledFunction
    id: str | None = None


class MessageShape(msgspec.Struct, frozen=True):
    """What every message must satisfy; extras are kept for the template, so messages stay dicts."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    tool_calls: list[_CalledTool] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


_TOLD_TEMPLATE = ("enable_thinking", "add_generation_prompt")


class ChatRequest(ConstrainedParameters, frozen=True):
    """The honoured parameters.

    `messages` and `tools` are checked for shape but stay plain dicts, because chat templates may
    look at keys that this API does not know.

    `continue_final_message`: the answer goes on where the last message, an assistant's, ends; it
    does not repeat it. Without it, whoever spoke last, a new turn begins, as other servers of this
    API do it; `add_generation_prompt: false` leaves out its beginning too. `enable_thinking` is
    told to the template and wins over `reasoning_effort`. `max_thinking_tokens`: after so many the
    model has to answer.
    """

    model: str
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    max_thinking_tokens: int | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    n: int = 1
    logprobs: bool = False
    top_logprobs: int | None = None

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens`, the newer name, wins over `max_tokens`."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the request tells the template, its `chat_template_kwargs` included."""
        kwargs: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            kwargs["enable_thinking"] = self.reasoning_effort != "none"
            if self.reasoning_effort != "none":
                kwargs["reasoning_effort"] = self.reasoning_effort
        for name in _TOLD_TEMPLATE:
            if getattr(self, name) is not None:
                kwargs[name] = getattr(self, name)
        return kwargs | (self.chat_template_kwargs or {})

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """With `tool_choice: none` the model is not even told, so that it cannot be tempted."""
        return [] if self.tool_choice == "none" else self.tools or []


def decode_chat_request(body: bytes) -> tuple[ChatRequest, list[str]]:
    """The checked request and the names of the parameters that have no effect.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_request(body, ChatRequest, IGNORED_PARAMETERS)
    if not request.model:
        raise InvalidRequest("model: must not be empty", param="model")
    check_messages(request.messages, request.tools)
    check_ranges(request)
    check_constraints(request)
    _check_choice(request)
    _check_logprobs(request)
    _check_template_kwargs(request)
    if request.continue_final_message:
        _check_continued(request)
    return request, ignored + constraints_without_effect(request)


_OF_PROMPTS = frozenset(
    {
        "model",
        "messages",
        "tools",
        "tool_choice",
        "reasoning_effort",
        "enable_thinking",
        "continue_final_message",
        "add_generation_prompt",
        "chat_template_kwargs",
    }
)


def without_effect_on_prompt(request: ChatRequest) -> list[str]:
    """The parameters that were given and of which no prompt is made."""
    given = [
        field.name
        for field in msgspec.structs.fields(request)
        if field.name not in _OF_PROMPTS and getattr(request, field.name) != field.default
    ]
    has_choice = request.tool_choice is not None and not request.tools
    return [*given, "tool_choice"] if has_choice else given


def check_messages(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> None:
    """Raises InvalidRequest or UnsupportedParameter that names the place, e.g.
    `messages[2].content[0]`."""
    if not messages:
        raise InvalidRequest("messages: must hold at least one message", param="messages")
    _check_shape(messages, list[MessageShape], "messages")
    for index, message in enumerate(messages):
        _check_parts(message, f"messages[{index}].content")
    if tools is not None:
        _check_shape(tools, list[ToolDefinition], "tools")


def _check_shape(value: Any, kind: Any, param: str) -> None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        at = param + path.rstrip("`")
        raise InvalidRequest(f"{at}: {text[:1].lower()}{text[1:]}", param=at) from None


def _check_parts(message: dict[str, Any], param: str) -> None:
    content = message.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if part["type"] != "text":
            at = f"{param}[{index}]"
            kind = part["type"]
            raise UnsupportedParameter(f"{at}: content of type {kind!r} is unsupported", param=at)
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{param}[{index}].text: missing", param=f"{param}[{index}].text")


def _check_choice(request: ChatRequest) -> None:
    choice = request.tool_choice
    if choice is None or choice in ("auto", "none"):
        return
    if not request.tools:
        raise InvalidRequest(
            "tool_choice: no tools are offered to choose from", param="tool_choice"
        )
    names = [tool["function"]["name"] for tool in request.tools]
    if isinstance(choice, ToolChoice) and choice.function.name not in names:
        raise InvalidRequest(
            f"tool_choice: no tool named {choice.function.name!r} is offered", param="tool_choice"
        )


def _check_logprobs(request: ChatRequest) -> None:
    if request.top_logprobs is None:
        return
    if not request.logprobs:
        raise InvalidRequest("top_logprobs: needs `logprobs: true`", param="top_logprobs")


def _check_template_kwargs(request: ChatRequest) -> None:
    kwargs = request.chat_template_kwargs or {}
    if "continue_final_message" in kwargs:
        at = "chat_template_kwargs.continue_final_message"
        raise InvalidRequest(f"{at}: is a parameter of the request itself", param=at)
    for name in _TOLD_TEMPLATE:
        value = getattr(request, name)
        if value is not None and kwargs.get(name, value) != value:
            raise InvalidRequest(
                f"{name}: {str(value).lower()}, but chat_template_kwargs.{name} says otherwise",
                param=name,
            )


def _check_continued(request: ChatRequest) -> None:
    at = "continue_final_message"
    last = request.messages[-1]
    problem = None
    if request.template_kwargs.get("add_generation_prompt"):
        problem = "cannot be given together with add_generation_prompt"
    elif last["role"] != "assistant":
        problem = f"the last message is of role {last['role']!r}, not 'assistant'"
    elif last.get("tool_calls"):
        problem = "the last message has tool calls, after which there is nothing to say"
    elif request.response_format is not None and request.response_format.type != "text":
        problem = "cannot be given together with response_format, which is for a whole answer"
    if problem is not None:
        raise InvalidRequest(f"{at}: {problem}", param=at)


# answers


class FunctionCall(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True):
    content: str | None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET
    role: Literal["assistant"] = "assistant"


class Choice(msgspec.Struct, frozen=True):
    """`stop_reason`, which other servers of this API have too: the stop string that was met."""

    index: int
    message: Message
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | msgspec.UnsetType = msgspec.UNSET
    stop_reason: str | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(msgspec.Struct, frozen=True):
    id: str
    created: int  # Unix seconds
    model: str
    choices: list[Choice]
    usage: UsageReport
    object: Literal["chat.completion"] = "chat.completion"


class FunctionCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first delta of a call has id, type and function.name; later ones only arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta | None = None


class ChoiceDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """`stop_reason` as in a Choice, with the finish reason."""

    index: int
    delta: ChoiceDelta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | msgspec.UnsetType = msgspec.UNSET
    stop_reason: str | msgspec.UnsetType = msgspec.UNSET


class ChatCompletionChunk(msgspec.Struct, frozen=True):
    """One chunk. With `include_usage` the last chunk has no choices and the usage."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageReport | msgspec.UnsetType = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"

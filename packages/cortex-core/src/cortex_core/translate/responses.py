"""The answer's side of a Responses request: the response object, whole or as a stream of events.

Pure: a chat completion in, a response out. Both ways build the one response object, item by item;
a stream tells each step, a whole answer only what it came to.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from cortex_core.envelopes.openai_responses import ENCRYPTED_REASONING, ResponsesRequest
from cortex_core.errors import CortexError, render_openai, render_responses
from cortex_core.translate.chat_stream import (
    CallDelta,
    ChatChunk,
    ChatUsage,
    ChunkOption,
    read_chunks,
    read_whole,
)
from cortex_core.translate.names import Names
from cortex_core.translate.responses_input import Item
from cortex_core.translate.responses_tools import Called, Offer
from cortex_core.translate.seal import sealed
from cortex_core.wire import sse

__all__ = ["ResponsesTranslation"]

_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "tool_choice.function": "tool_choice",
    "tools.function": "tools",
}

_encode = msgspec.json.Encoder().encode


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"


class ResponsesTranslation:
    """See `cortex_core.translate.translation.Translation`. `conversation`: what the request's
    messages were made from; with the response's `output` it is what a later request goes on
    from. `keep` gets both when the response has come to its end, and never one that failed."""

    def __init__(
        self,
        request: ResponsesRequest,
        chat: bytes,
        *,
        ignored: tuple[str, ...],
        conversation: list[Item],
        offer: Offer,
        created_at: float,
        keep: Callable[[dict[str, Any], list[Item]], None] | None = None,
        new_id: Callable[[str], str] = _new_id,
    ) -> None:
        self.model = request.model
        self.is_stream = request.stream
        self.chat = chat
        self.ignored = ignored
        self.names = Names(_NAMES, offer.places)
        self.conversation = conversation
        self.request = request
        self.response: dict[str, Any] = _blank(request, new_id("resp"), created_at)
        self._called = offer.called
        self._keep = keep
        self._new_id = new_id
        self._number = 0
        self._is_open = False
        self._item: _Part | _Call | None = None
        self._finish: str | None = None
        self._spent = ChatUsage()
        self.is_ended = False

    def started(self, prompt: int, cached: int) -> None:
        """Nothing: a response tells of its tokens at its end."""

    # a whole answer

    def whole(self, body: bytes) -> bytes:
        choice, usage = read_whole(body)
        message = choice.message
        if message.reasoning_content:
            self._write("reasoning", message.reasoning_content)
        if message.content:
            self._write("message", message.content, choice.logprobs)
        for index, call in enumerate(message.tool_calls or ()):
            self._call(CallDelta(index, call.id, call.function))
        self._end(choice.finish_reason, usage)
        return _encode(self.response)

    def error_body(self, error: CortexError) -> bytes:
        return _encode(render_openai(self.names.told(error)))

    # a stream

    def keep_alive(self) -> bytes:
        return sse.KEEP_ALIVE if self._is_open else self._open()

    def feed(self, events: bytes) -> bytes:
        out = [] if self._is_open else [self._open()]
        for chunk in read_chunks(events):
            if isinstance(chunk, ChatChunk):
                for option in chunk.choices:
                    out.extend(self._option(option))
                self._spent = chunk.usage or self._spent
            elif isinstance(chunk, CortexError):
                out.append(self.error_event(chunk))
            elif self._finish is not None:
                out.extend(map(self._event, self._end(self._finish, self._spent)))
                out.append(self._told(f"response.{self.response['status']}"))
        return b"".join(out)

    def error_event(self, error: CortexError) -> bytes:
        """An `error` event; where the response had begun, it is told that it failed, too."""
        error = self.names.told(error)
        event = render_responses(error)
        if not self._is_open:
            return self._event(event)
        self.response["status"] = "failed"
        self.response["error"] = {"code": _error_code(error), "message": error.message}
        return self._event(event) + self._told("response.failed")

    def _open(self) -> bytes:
        self._is_open = True
        return self._told("response.created") + self._told("response.in_progress")

    def _told(self, kind: str) -> bytes:
        return self._event({"type": kind, "response": self.response})

    def _event(self, event: dict[str, Any]) -> bytes:
        event["sequence_number"] = self._number
        self._number += 1
        return sse.encode(_encode(event), event=event["type"])

    def _option(self, option: ChunkOption) -> Iterator[bytes]:
        delta = option.delta
        if delta.reasoning_content:
            yield from self._text("reasoning", delta.reasoning_content)
        if delta.content:
            yield from self._text("message", delta.content, option.logprobs)
        for call in delta.tool_calls or ():
            yield from map(self._event, self._call(call))
        if option.finish_reason is not None:
            self._finish = option.finish_reason

    def _text(
        self, kind: str, text: str, logprobs: dict[str, Any] | None = None
    ) -> Iterator[bytes]:
        part = self._open_part(kind)
        if part is not None and logprobs is None:
            yield part.append(text, self._number)
            self._number += 1
        else:
            yield from map(self._event, self._write(kind, text, logprobs))

    # what both are made of: each step returns the events that tell it

    def _write(
        self, kind: str, text: str, logprobs: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        part, events = self._open_part(kind), []
        if part is None:
            part, events = self._begin_part(kind)
        return [*events, part.delta(text, logprobs)]

    def _begin_part(self, kind: str) -> tuple[_Part, list[dict[str, Any]]]:
        part = _Part(kind, self._new_id, len(self.response["output"]), self.request)
        return part, self._begin(part)

    def _call(self, delta: CallDelta) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        call, function = self._item, delta.function
        if not isinstance(call, _Call) or call.index != delta.index:
            name = (function.name if function else None) or ""
            place = len(self.response["output"])
            called = self._called.get(name, Called(name))
            call = _Call(delta.index, called, delta.id or "", self._new_id, place)
            events += self._begin(call)
        if function is not None and function.arguments:
            events += call.append(function.arguments)
        return events

    def _open_part(self, kind: str) -> _Part | None:
        """The item that is open, if it is one of this kind of text."""
        part = self._item
        return part if isinstance(part, _Part) and part.kind == kind else None

    def _begin(self, item: _Part | _Call) -> list[dict[str, Any]]:
        events = self._close()
        self._item = item
        self.response["output"].append(item.item)
        return events + item.opening()

    def _close(self) -> list[dict[str, Any]]:
        events = self._item.closing() if self._item else []
        self._item = None
        return events

    def _end(self, finish: str | None, usage: ChatUsage) -> list[dict[str, Any]]:
        """The answer has come to its end. One without a word is an empty message."""
        self.is_ended = True
        is_cut = finish == "length"
        output, events = self.response["output"], []
        if not output:
            _, events = self._begin_part("message")
        if is_cut:
            output[-1]["status"] = "incomplete"
        events += self._close()
        self.response["status"] = "incomplete" if is_cut else "completed"
        if is_cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        self.response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        if self._keep is not None:
            self._keep(self.response, self.conversation)
        return events


class _Part:
    """A reasoning or message item with its one part of text, as it grows."""

    def __init__(
        self, kind: str, new_id: Callable[[str], str], index: int, request: ResponsesRequest
    ) -> None:
        self.kind = kind
        self._texts: list[str] = []
        self._scores: list[Any] = []
        self._is_sealed = ENCRYPTED_REASONING in request.include
        reasoning = request.reasoning
        self._is_summary = kind == "reasoning" and bool(reasoning and reasoning.is_summarised)
        self.item: dict[str, Any]
        if kind == "message":
            self.item = {"id": new_id("msg"), "type": "message", "role": "assistant", "content": []}
            self._event = "response.output_text"
        else:
            self.item = {"id": new_id("rs"), "type": "reasoning", "summary": []}
            self._event = "response.reasoning_text"
            if self._is_summary:
                self._event = "response.reasoning_summary_text"
        self.item["status"] = "in_progress"
        place = "summary_index" if self._is_summary else "content_index"
        self._at = {"item_id": self.item["id"], "output_index": index, place: 0}
        self._head, self._tail = self._cut()

    def _cut(self) -> tuple[bytes, bytes]:
        """A delta event without logprobs, around its text and before its number."""
        kind = f"{self._event}.delta"
        head = _encode({"type": kind, **self._at})[:-1] + b',"delta":'
        tail = b',"logprobs":[]' if self.kind == "message" else b""
        return b"event: " + kind.encode() + b"\ndata: " + head, tail + b',"sequence_number":'

    def append(self, text: str, number: int) -> bytes:
        """One more piece of text as an encoded event: what happens once per token."""
        self._texts.append(text)
        return b"%b%b%b%d}\n\n" % (self._head, _encode(text), self._tail, number)

    def opening(self) -> list[dict[str, Any]]:
        added = {
            "type": "response.output_item.added",
            "output_index": self._at["output_index"],
            "item": dict(self.item),
        }
        return [added, {"type": f"{self._part_event}.added", **self._at, "part": self._part("")}]

    def delta(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        self._texts.append(text)
        event = {"type": f"{self._event}.delta", **self._at, "delta": text}
        if self.kind == "message":
            scores = _scores(logprobs)
            self._scores += scores
            event["logprobs"] = scores
        return event

    def closing(self) -> list[dict[str, Any]]:
        """The item is whole from here on."""
        text = "".join(self._texts)
        part = self._part(text)
        if self.item["status"] == "in_progress":
            self.item["status"] = "completed"
        self.item["summary" if self._is_summary else "content"] = [part]
        if self.kind == "reasoning" and self._is_sealed:
            self.item["encrypted_content"] = sealed(text)
        done = {"type": f"{self._event}.done", **self._at, "text": text}
        if self.kind == "message":
            done["logprobs"] = self._scores
        return [
            done,
            {"type": f"{self._part_event}.done", **self._at, "part": part},
            _item_done(self.item, self._at["output_index"]),
        ]

    @property
    def _part_event(self) -> str:
        return "response.reasoning_summary_part" if self._is_summary else "response.content_part"

    def _part(self, text: str) -> dict[str, Any]:
        if self.kind == "message":
            return {
                "type": "output_text", "text": text, "annotations": [], "logprobs": self._scores,
            }  # fmt: skip
        return {"type": "summary_text" if self._is_summary else "reasoning_text", "text": text}


class _Call:
    """A call of one of the client's tools. A custom tool's free text is the one argument of a
    function, so it is known when the call is whole."""

    def __init__(
        self,
        index: int,
        called: Called,
        call_id: str,
        new_id: Callable[[str], str],
        place: int,
    ) -> None:
        self.index = index  # among the calls; `place` is among the items
        is_custom = called.is_custom
        kind = "custom_tool_call" if is_custom else "function_call"
        self._key = "input" if is_custom else "arguments"
        self._is_custom = is_custom
        self._event = f"response.{kind}_input" if is_custom else f"response.{kind}_arguments"
        self._fragments: list[str] = []
        self._place = place
        self.item: dict[str, Any] = {
            "id": new_id("ctc" if is_custom else "fc"),
            "type": kind,
            "status": "in_progress",
            "call_id": call_id,
            "name": called.name,
            self._key: "",
        }
        if called.namespace is not None:
            self.item["namespace"] = called.namespace

    def opening(self) -> list[dict[str, Any]]:
        kind = "response.output_item.added"
        return [{"type": kind, "output_index": self._place, "item": dict(self.item)}]

    def append(self, fragment: str) -> list[dict[str, Any]]:
        self._fragments.append(fragment)
        return [] if self._is_custom else [self._delta(fragment)]

    def closing(self) -> list[dict[str, Any]]:
        text = "".join(self._fragments)
        events = []
        if self._is_custom:
            text = _free_text(text)
            events.append(self._delta(text))
        if self.item["status"] == "in_progress":
            self.item["status"] = "completed"
        self.item[self._key] = text
        done = {"type": f"{self._event}.done", **self._at, self._key: text}
        return [*events, done, _item_done(self.item, self._place)]

    @property
    def _at(self) -> dict[str, Any]:
        return {"item_id": self.item["id"], "output_index": self._place}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"type": f"{self._event}.delta", **self._at, "delta": text}


def _item_done(item: Item, index: int) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def _free_text(arguments: str) -> str:
    """The `input` of a custom tool's call; what is no such object is given as it came."""
    try:
        value = msgspec.json.decode(arguments).get("input")
    except (msgspec.DecodeError, AttributeError, RecursionError):
        return arguments
    return value if isinstance(value, str) else arguments


def _scores(logprobs: dict[str, Any] | None) -> list[Any]:
    return (logprobs or {}).get("content") or []


def _error_code(error: CortexError) -> str:
    """Of a response's `error`, whose codes are few."""
    if error.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if error.status < 500 else "server_error"


def _blank(request: ResponsesRequest, name: str, created_at: float) -> dict[str, Any]:
    """A response before anything is known of it."""
    reasoning, text = request.reasoning, request.text
    form = text.format if text else None
    return {
        "id": name,
        "object": "response",
        "created_at": int(created_at),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata,
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning else None,
        },
        "store": request.store,
        "temperature": request.temperature,
        "text": {"format": msgspec.to_builtins(form) if form else {"type": "text"}},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools,
        "top_logprobs": request.top_logprobs,
        "top_p": request.top_p,
        "truncation": request.truncation,
        "usage": None,
    }

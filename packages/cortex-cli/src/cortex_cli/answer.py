"""One streamed answer, read from its bytes. Pure: chunks and times in, parts and totals out."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cortex_cli.failure import Failure
from cortex_cli.units import duration, rate
from cortex_core.errors import CortexError, parse_openai
from cortex_core.wire.sse import Event, Parser

__all__ = ["Answer", "Part"]


MEASURABLE_S = 0.1


class Part(msgspec.Struct, frozen=True):
    """The next piece of text, and whether it is the model's reasoning or its answer."""

    kind: Literal["reasoning", "content"]
    text: str


class Answer:
    """Feed it what arrives; it returns what to show and remembers what to keep.

    started_s: when the request was sent, on the clock that `feed` is given.
    """

    def __init__(self, started_s: float) -> None:
        self.content = ""
        self.reasoning = ""
        self.tool_calls: list[dict[str, Any]] = []
        self.finish_reason: str | None = None
        self.completion_tokens: int | None = None
        self.is_complete = False
        self._parser = Parser()
        self._started_s = started_s
        self._first_s: float | None = None
        self._last_s = started_s

    def feed(self, chunk: bytes, now_s: float) -> list[Part]:
        """Raises the CortexError of an error event: the answer ends there, unfinished."""
        parts: list[Part] = []
        for event in self._parser.feed(chunk):
            parts += self._read(event, now_s)
        return parts

    def end(self) -> None:
        """The connection closed. Raises Failure if the answer had not ended before it."""
        if not self.is_complete:
            raise Failure("the stream broke off before its end; the answer is incomplete")

    @property
    def ttft_s(self) -> float | None:
        """From the request to the first token of any kind; None if there was none."""
        return None if self._first_s is None else self._first_s - self._started_s

    @property
    def tokens_per_s(self) -> float | None:
        """Over the tokens after the first; None when there is too little to measure: what comes
        within `MEASURABLE_S` may have come in one piece."""
        if self._first_s is None or not self.completion_tokens or self.completion_tokens < 2:
            return None
        took_s = self._last_s - self._first_s
        return (self.completion_tokens - 1) / took_s if took_s >= MEASURABLE_S else None

    def summary(self) -> str:
        """`23 tokens · first after 40 ms · 310 tokens/s`, as far as it is known."""
        facts: list[str] = []
        if self.completion_tokens is not None:
            plural = "" if self.completion_tokens == 1 else "s"
            facts.append(f"{self.completion_tokens} token{plural}")
        if self.ttft_s is not None:
            facts.append(f"first after {duration(self.ttft_s)}")
        if self.tokens_per_s is not None:
            facts.append(f"{rate(self.tokens_per_s)} tokens/s")
        if self.finish_reason == "length":
            facts.append("cut off at the token limit")
        return " · ".join(facts)

    def message(self) -> dict[str, Any]:
        """What to keep of it in the conversation; reasoning is not sent back."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content or None}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message

    def _read(self, event: Event, now_s: float) -> list[Part]:
        if event.data == b"[DONE]":
            self.is_complete = True
            return []
        try:
            chunk = msgspec.json.decode(event.data)
        except msgspec.DecodeError:
            raise Failure(f"the stream holds an event that is no JSON: {event.data!r}") from None
        if "error" in chunk:
            raise _error(event.data)
        if chunk.get("usage"):
            self.completion_tokens = chunk["usage"].get("completion_tokens")
        parts: list[Part] = []
        for choice in chunk.get("choices") or ():
            parts += self._delta(choice.get("delta") or {}, now_s)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return parts

    def _delta(self, delta: dict[str, Any], now_s: float) -> list[Part]:
        parts: list[Part] = []
        if reasoning := delta.get("reasoning_content"):
            self.reasoning += reasoning
            parts.append(Part("reasoning", reasoning))
        if content := delta.get("content"):
            self.content += content
            parts.append(Part("content", content))
        for call in delta.get("tool_calls") or ():
            self._call(call)
        if parts or delta.get("tool_calls"):
            if self._first_s is None:
                self._first_s = now_s
            self._last_s = now_s
        return parts

    def _call(self, delta: dict[str, Any]) -> None:
        index = delta.get("index", 0)
        while len(self.tool_calls) <= index:
            function = {"name": "", "arguments": ""}
            self.tool_calls.append({"id": "", "type": "function", "function": function})
        call = self.tool_calls[index]
        call["id"] = delta.get("id") or call["id"]
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def _error(data: bytes) -> CortexError:
    return parse_openai(data, status=502)

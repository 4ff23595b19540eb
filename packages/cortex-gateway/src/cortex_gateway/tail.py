"""The last bytes of a chat stream: what they say about how it ended. Pure: bytes in, bytes out.

A stream is passed on event by event, never parsed: a chunk that ends inside an event is held back
to the event's start until the rest is here. So, wherever the upstream breaks off, what the client
has is whole events, and an error event can follow them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cortex_core.errors import CortexError, parse_openai
from cortex_core.outcome import Usage
from cortex_core.translate.chat_stream import ChatUsage

__all__ = [
    "MAX_EVENT_BYTES",
    "UNREADABLE",
    "Answer",
    "StreamTail",
    "answer_of",
    "is_comment",
    "parted",
]

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises over bytes that are not the JSON it was told to expect."""

# Enough for the usage chunk, `[DONE]` and an error event.
WINDOW_BYTES = 4096

# An event longer than this is passed on in pieces.
MAX_HELD_BYTES = 256 * 1024

# No event of a neuron is as long as this; what must not be cut is held up to here.
MAX_EVENT_BYTES = 16 * 1024 * 1024


class Answer(msgspec.Struct):
    """What the gateway reads of a completion, or of a chunk."""

    spent: ChatUsage | None = msgspec.field(default=None, name="usage")
    choices: list[msgspec.Raw] = []
    error: dict[str, Any] | None = None

    @property
    def usage(self) -> Usage | None:
        spent = self.spent
        if spent is None:
            return None
        return Usage(spent.prompt_tokens, spent.cached, spent.completion_tokens, spent.reasoning)


_decoder = msgspec.json.Decoder(Answer)


def answer_of(body: bytes) -> Answer:
    """Raises UNREADABLE."""
    return _decoder.decode(body)


# Within JSON a quote that is part of a text is escaped, so this is never what a model said.
_ERROR_EVENT = b'data: {"error"'


def is_comment(events: bytes) -> bool:
    """Whether these whole events are signs of life and nothing else."""
    return events.startswith(b":") and all(
        line.startswith(b":") for line in events.splitlines() if line
    )


def parted(events: bytes) -> tuple[bytes, CortexError | None]:
    """What comes before the error event among these whole events, and the error."""
    before, mark, rest = events.partition(_ERROR_EVENT)
    if not mark:
        return events, None
    data = (mark + rest).split(b"\n", 1)[0].removeprefix(b"data: ")
    return before, parse_openai(data, status=502)


def _last_boundary(chunk: bytes) -> int:
    """The length of `chunk` up to and with its last blank line; 0 when it has none."""
    ends = (chunk.rfind(mark) + len(mark) for mark in (b"\n\n", b"\n\r\n", b"\r\r"))
    cut = max(ends)
    return cut if cut > 3 else 0  # up to 2 means none; no event fits into 3 bytes


class StreamTail:
    """Feed it every chunk and send on what it returns; ask it at the end.

    `is_mid_event`: the last byte that was let through is inside an event, one of more than
    `most_held` bytes.
    """

    __slots__ = ("_held", "_most_held", "_recent", "is_mid_event")

    def __init__(self, most_held: int = MAX_HELD_BYTES) -> None:
        self._most_held = most_held
        self._held = b""
        self._recent = b""
        self.is_mid_event = False

    def feed(self, chunk: bytes) -> bytes:
        """What may be sent now: everything up to the last event that is complete."""
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if not chunk.endswith(b"\n\n"):
            cut = _last_boundary(chunk)
            if len(chunk) - cut <= self._most_held:
                self._held = chunk[cut:]
                chunk = chunk[:cut]
                if not chunk:
                    return chunk
                self.is_mid_event = False
            else:
                self.is_mid_event = True
        else:
            self.is_mid_event = False
        if len(chunk) >= WINDOW_BYTES:
            self._recent = chunk[-WINDOW_BYTES:]
        else:
            self._recent = self._recent[len(chunk) - WINDOW_BYTES :] + chunk
        return chunk

    def flush(self) -> bytes:
        """What was held back, now that the upstream has ended; it counts as sent."""
        rest, self._held = self._held, b""
        self._recent += rest
        return rest

    @property
    def is_done(self) -> bool:
        """Whether the stream, with what is held back, ends in `[DONE]`."""
        return (self._recent + self._held).rstrip().endswith(b"data: [DONE]")

    @property
    def error_code(self) -> str | None:
        """The code of an error event at the end of what was sent, or before its `[DONE]`."""
        for back in (-1, -2):
            data = (self._data(back) or b"").strip()
            if data.startswith(b'{"error"'):
                return parse_openai(data, status=502).code
            if data != b"[DONE]":
                break
        return None

    @property
    def usage(self) -> Usage | None:
        """The usage in one of the last events, if the client asked for it."""
        if b'"usage"' not in self._recent:
            return None
        for back in (-1, -2, -3):
            data = self._data(back)
            if data is not None and b'"usage"' in data:
                try:
                    usage = answer_of(data).usage
                except UNREADABLE:
                    continue
                if usage is not None:
                    return usage
        return None

    def _data(self, index: int) -> bytes | None:
        """The data of one of the last events, counted from the end; None if it has none."""
        events = self._recent.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n\n")
        if len(events) < -index:
            return None
        line = events[index].rsplit(b"\n", 1)[-1]
        return line[5:] if line.startswith(b"data:") else None

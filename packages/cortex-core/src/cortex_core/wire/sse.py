"""Server-sent events: encode, and parse incrementally from chunks cut anywhere.

Format: WHATWG HTML, "Server-sent events" (lines end in CR, LF or CRLF; a blank line dispatches).
"""

from __future__ import annotations

import msgspec

__all__ = ["DONE", "KEEP_ALIVE", "Event", "Parser", "encode"]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class Event(msgspec.Struct, frozen=True):
    """One dispatched event. `data` is the joined data lines, as bytes."""

    data: bytes
    event: str = "message"
    id: str | None = None


def encode(data: bytes, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """One event with a single-line payload (JSON never holds a raw newline)."""
    head = b""
    if event is not None:
        head += b"event: " + event.encode() + b"\n"
    if event_id is not None:
        head += b"id: " + event_id.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


class Parser:
    """Bytes in, events out; comments are counted (they are signs of life), never returned."""

    def __init__(self) -> None:
        self.comments = 0
        self._rest = b""
        self._after_cr = False
        self._reset()

    def _reset(self) -> None:
        self._data: list[bytes] = []
        self._event = "message"
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        if chunk:
            self._after_cr = False
        buffer = self._rest + chunk
        if buffer.endswith(b"\r"):
            # The CR already ends the line; remember it, so that an LF to come is not a second one.
            self._after_cr = True
        lines = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        events = []
        for line in lines:
            event = self._line(line)
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: bytes) -> Event | None:
        if not line:
            event = Event(b"\n".join(self._data), self._event, self._id) if self._data else None
            self._reset()
            return event
        if line.startswith(b":"):
            self.comments += 1
            return None
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            self._id = value.decode("utf-8", "replace")
        return None

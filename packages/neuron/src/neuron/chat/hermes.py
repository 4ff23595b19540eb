"""The Hermes tool call format: `<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>`.

Everything up to the brace that opens the arguments is held back and can still turn out to be
text; from there on the client has seen the call, and fragments follow as they come. Quotes are
respected, so that an argument may hold `</tool_call>` itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Literal

from neuron.chat.pieces import CallArguments, CallStarted, Text

__all__ = ["HermesParser"]

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"

_Event = Text | CallStarted | CallArguments


class HermesParser:
    """Push machine over the content of one answer."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._state: Literal["text", "call", "after"] = "text"
        self._pending = ""  # not looked at yet, or too short to decide
        self._spaces = ""  # between text and calls: shown only if more text follows
        self._has_text = False
        self._calls = 0
        self._call = _CallScanner()
        self._raw = ""  # of the call, while it can still turn out to be text

    def feed(self, text: str) -> list[_Event]:
        if self._state == "text" and not self._pending and "<" not in text:
            events: list[_Event] = []
            self._text(text, events)
            return events
        self._pending += text
        return self._advance()

    def finish(self) -> list[_Event]:
        events = self._advance()
        while self._state == "call" and not self._call.is_open:
            self._give_back(events)  # which may begin another, likewise cut short
            events += self._advance()
        if self._state == "text":
            self._text(self._pending, events)
            if not self._calls and self._spaces:
                events.append(Text(self._spaces))
        self._pending = self._spaces = ""
        return events

    def _advance(self) -> list[_Event]:
        events: list[_Event] = []
        step = {"text": self._in_text, "call": self._in_call, "after": self._after_call}
        while step[self._state](events):
            pass
        return events

    def _in_text(self, events: list[_Event]) -> bool:
        before, mark, rest = self._pending.partition(_OPEN)
        if mark:
            self._text(before, events)
            self._pending, self._state = rest, "call"
            self._call, self._raw = _CallScanner(), ""
            return True
        cut = len(before) - _overlap(before, _OPEN)
        self._text(before[:cut], events)
        self._pending = before[cut:]
        return False

    def _text(self, text: str, events: list[_Event]) -> None:
        text = self._spaces + text
        shown = text.rstrip()
        self._spaces = text[len(shown) :]
        if self._calls and not self._has_text:
            shown = shown.lstrip()
        if shown:
            self._has_text = True
            events.append(Text(shown))

    def _in_call(self, events: list[_Event]) -> bool:
        call, text = self._call, self._pending
        was_open = call.is_open
        end = call.scan(text)
        self._pending = text[end:]
        if not was_open:
            self._raw += text[:end]
            if call.is_open:
                events.append(CallStarted(self._calls, self._new_id(), call.name))
                self._calls += 1
        fragment = call.take_arguments()
        if fragment:
            events.append(CallArguments(self._calls - 1, fragment))
        if call.state == "done":
            self._state = "after"
            return True
        if call.state == "broken":
            if call.is_open:
                self._state = "text"  # what the client has seen stands; the rest is text
            else:
                self._give_back(events)
            return True
        return False

    def _give_back(self, events: list[_Event]) -> None:
        """It was no call: show the mark, and look at what came after it as text."""
        self._state = "text"
        self._text(_OPEN, events)
        self._pending, self._raw = self._raw + self._pending, ""

    def _after_call(self, events: list[_Event]) -> bool:
        rest = self._pending.lstrip()
        if rest.startswith(_CLOSE):
            self._pending, self._state = rest[len(_CLOSE) :], "text"
            return True
        if _CLOSE.startswith(rest):
            return False
        self._state = "text"  # the model forgot to close; the call was whole all the same
        return True


def _overlap(text: str, mark: str) -> int:
    """How much of `mark`'s beginning `text` ends in."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0


_SPACE = " \t\r\n"
_IN_STRING = re.compile(r'["\\]')
_IN_NESTED = re.compile(r'["{}\[\]]')
_IN_SCALAR = re.compile(r"[,}\s]")
_CLOSERS = {"{": "}", "[": "]"}


class _CallScanner:
    """Reads one JSON object in chunks, and hands over the text of its `arguments`.

    Strict about the outer object, whose keys it needs; inside the arguments it only matches
    brackets and quotes, because whoever gets them can judge them better than we.
    """

    def __init__(self) -> None:
        self.state: Literal[
            "start", "key", "in_key", "colon", "value", "string", "nested", "scalar", "next",
            "done", "broken",
        ] = "start"  # fmt: skip
        self.name = ""
        self.is_open = False  # name known, and the arguments are an object: the call is a call
        self._key = ""
        self._part: list[str] = []  # of the key or value being read
        self._is_escaped = False
        self._closers: list[str] = []
        self._is_quoted = False  # inside a string inside a nested value
        self._is_taking = False  # the nested value is the arguments
        self._arguments: list[str] = []  # not taken yet
        self._has_arguments = False

    def take_arguments(self) -> str:
        """The next fragment; nothing before the call is open."""
        if not self.is_open:
            return ""
        fragment = "".join(self._arguments)
        self._arguments.clear()
        return fragment

    def scan(self, text: str) -> int:
        """Read on; returns how much was read, which is less than all when done or broken."""
        at = 0
        while at < len(text) and self.state not in ("done", "broken"):
            if self.state in ("in_key", "string"):
                at = self._read_string(text, at)
            elif self.state == "nested":
                at = self._read_nested(text, at)
            elif self.state == "scalar":
                at = self._read_scalar(text, at)
            elif text[at] in _SPACE:
                at += 1
            else:
                at = self._read_outer(text, at)
        return at

    def _read_outer(self, text: str, at: int) -> int:
        character = text[at]
        state = self.state
        if state == "start" and character == "{":
            self.state = "key"
        elif state == "key" and character == '"':
            self.state = "in_key"
        elif state == "colon" and character == ":":
            self.state = "value"
        elif state == "next" and character == ",":
            self.state = "key"
        elif state == "next" and character == "}":
            self._close()
        elif state == "value" and character == '"':
            self.state = "string"
        elif state == "value" and character in _CLOSERS:
            return self._begin_nested(character, at)
        elif state == "value":
            self.state = "scalar"
            return at
        else:
            self.state = "broken"
            return at
        return at + 1

    def _close(self) -> None:
        if self.name and not self._has_arguments:
            self._accept("{}")
        self.state = "done" if self.is_open else "broken"

    def _read_string(self, text: str, at: int) -> int:
        end, is_closed = self._string_end(text, at)
        self._part.append(text[at : end - 1] if is_closed else text[at:end])
        if not is_closed:
            return end
        value = _unquote("".join(self._part))
        self._part.clear()
        if value is None:
            self.state = "broken"
        elif self.state == "in_key":
            self._key, self.state = value, "colon"
        else:
            self.state = "next"
            self._take_string(value)
        return end

    def _string_end(self, text: str, at: int) -> tuple[int, bool]:
        """Just after the closing quote, or the end of the text; and whether it was closed."""
        if self._is_escaped:
            self._is_escaped = False
            at += 1
        while match := _IN_STRING.search(text, at):
            if match[0] == '"':
                return match.end(), True
            at = match.end() + 1  # over the escaped character, which may be in the next chunk
        self._is_escaped = at > len(text)
        return len(text), False

    def _take_string(self, value: str) -> None:
        if self._key == "name" and not self.name:
            self.name = value
            if not value:
                self.state = "broken"
            elif self._has_arguments:
                self.is_open = True
        elif self._is_arguments_key():
            # Some models write the arguments as OpenAI's API does: an object inside a string.
            if _is_object(value):
                self._accept(value)
            else:
                self.state = "broken"

    def _begin_nested(self, character: str, at: int) -> int:
        self.state = "nested"
        self._closers = [_CLOSERS[character]]
        if self._is_arguments_key():
            if character == "[":
                self.state = "broken"
                return at
            self._has_arguments = self._is_taking = True
            self._arguments.append(character)
            self.is_open = bool(self.name)
        else:
            self._is_taking = False
        return at + 1

    def _read_nested(self, text: str, at: int) -> int:
        begin = at
        while at < len(text) and self._closers:
            if self._is_quoted:
                at, is_closed = self._string_end(text, at)
                self._is_quoted = not is_closed
                continue
            match = _IN_NESTED.search(text, at)
            if match is None:
                at = len(text)
                break
            at = match.end()
            character = match[0]
            if character == '"':
                self._is_quoted = True
            elif character in _CLOSERS:
                self._closers.append(_CLOSERS[character])
            elif character != self._closers.pop():
                at -= 1
                self.state = "broken"
                break
        if self._is_taking:
            self._arguments.append(text[begin:at])
        if not self._closers and self.state != "broken":
            self.state = "next"
        return at

    def _read_scalar(self, text: str, at: int) -> int:
        match = _IN_SCALAR.search(text, at)
        end = match.start() if match else len(text)
        self._part.append(text[at:end])
        if match is None:
            return end
        value = "".join(self._part)
        self._part.clear()
        self.state = "next"
        if not _is_json(value) or self._key == "name":
            self.state = "broken"
        elif self._is_arguments_key():
            if value == "null":
                self._accept("{}")
            else:
                self.state = "broken"
        return end

    def _is_arguments_key(self) -> bool:
        return self._key in ("arguments", "parameters") and not self._has_arguments

    def _accept(self, arguments: str) -> None:
        """The arguments are known as a whole."""
        self._has_arguments = True
        self._arguments.append(arguments)
        self.is_open = bool(self.name)


def _unquote(text: str) -> str | None:
    try:
        value = json.loads(f'"{text}"', strict=False)  # a raw newline in a string is forgiven
        value.encode()  # half a surrogate pair could not be sent to anybody
    except ValueError:
        return None
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False

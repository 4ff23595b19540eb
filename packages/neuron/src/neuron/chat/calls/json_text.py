"""JSON as models write it: where it ends, and what of it is forgiven. Pure."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, Literal

__all__ = ["Container", "escaped", "is_json", "is_object", "scan_string", "unquoted"]

_IN_STRING = re.compile(r'["\\]')
_CONTROL = re.compile(r"[\x00-\x1f]")
_CLOSERS = {"{": "}", "[": "]"}
_SPACES = " \t\r\n"

Met = Literal["", "inner", "end", "mark", "mismatch"]


class Container:
    """An object or list of which the first bracket was read. Only brackets and quotes are matched,
    because whoever gets it can judge it better than we; and what JSON forbids inside strings, raw
    control characters, is escaped.

    A mark ends it: outside of strings always; inside of one, if it is among `closes` and not all of
    it turns out to be JSON. That string was never closed, then, and the brackets before the mark
    are those that stand `around`.
    """

    def __init__(
        self, first: str, marks: tuple[str, ...], closes: tuple[str, ...], around: str = ""
    ) -> None:
        self._closers = [_CLOSERS[first]]
        self._plain, self._quoted = _pattern(marks, r'["{}\[\]]'), _pattern(closes, r'["\\]')
        self._around = around
        self._is_quoted = self._is_escaped = False
        self._told = [first]
        self._parts: list[str] = []  # read, and not told yet
        self._at = 0  # how much of the text they are
        self._mark_at = -1  # where in it the first mark inside of a string is

    def read(self, text: str, limit: int, *, is_all: bool) -> tuple[str, int, bool | None]:
        """Of the text from where the last call left it: what comes next of the container, how much
        of the text that was, and whether the container was whole; None: it goes on. Behind `limit`
        a mark may begin that is not there yet. `is_all`: no more text comes."""
        told, size = "", 0
        while True:
            begin, is_quoted = self._at, self._is_quoted
            met = self._step(text, limit)
            raw = text[begin : self._at]
            if met == "mark" and is_quoted:
                if self._mark_at < 0:
                    inner = _without(self._around, raw)
                    self._add(inner, is_quoted)
                    told, size = self._tell(), begin + len(inner)
                    raw, text, limit = raw[len(inner) :], text[size:], limit - size
                    self._at = self._mark_at = len(raw)
                self._add(raw + text[self._at], is_quoted)
                self._at += 1
                continue
            self._add(_without("", raw) if met == "mark" else raw, is_quoted)
            if met != "inner":
                break
        if self._mark_at >= 0:
            if not met and not is_all:
                return told, size, None
            if met != "end" or not is_json("".join(self._told + self._parts)):
                return told, size + self._mark_at, False
        if not met and is_all:
            self._add(text[self._at :], self._is_quoted)
            self._at = len(text)
        size += self._at
        self._at = 0
        return told + self._tell(), size, None if not met and not is_all else met == "end"

    def _add(self, raw: str, is_quoted: bool) -> None:
        self._parts.append(_CONTROL.sub(_escape_met, raw) if is_quoted else raw)

    def _tell(self) -> str:
        text = "".join(self._parts)
        self._told.append(text)
        self._parts.clear()
        return text

    def _step(self, text: str, limit: int) -> Met:
        """To just after the next bracket or quote: `inner`, or the `end` of it all; or to just
        before a `mark`, or a bracket that does not match. Else as far as it is certain that no
        mark begins, but for what may be one's surroundings."""
        start = self._at
        if self._is_escaped and start < len(text):
            self._is_escaped = False
            self._at += text[start] in '"\\'  # nothing else could be mistaken
        met = (self._quoted if self._is_quoted else self._plain).search(text, self._at)
        if met is None or (met.start() >= limit and met.lastgroup != "mark"):
            left = text[start:limit].rstrip(_SPACES + "}]" if self._is_quoted else _SPACES)
            self._at = max(self._at, start + len(left))
            return ""
        self._at = met.start()
        if met.lastgroup == "mark":
            return "mark"
        character = met[0]
        if character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_quoted = not self._is_quoted
        elif character in _CLOSERS:
            self._closers.append(_CLOSERS[character])
        elif character != self._closers[-1]:
            return "mismatch"
        else:
            self._closers.pop()
        self._at += 1
        return "inner" if self._closers else "end"


def _without(around: str, text: str) -> str:
    """Without the brackets of `around`, as far as they are there, at its end."""
    for bracket in reversed(around):
        text = text.rstrip(_SPACES).removesuffix(bracket)
    return text.rstrip(_SPACES)


@lru_cache(maxsize=64)
def _pattern(marks: tuple[str, ...], characters: str) -> re.Pattern[str]:
    return re.compile(f"(?P<mark>{'|'.join(map(re.escape, marks)) or '(?!)'})|{characters}")


def scan_string(text: str, at: int, is_escaped: bool) -> tuple[int, bool, bool]:
    """Just after the closing quote, or the end of the text; whether the text ends in a backslash
    that escapes what comes next; whether the string was closed."""
    if is_escaped and at < len(text):
        is_escaped = False
        at += 1
    while met := _IN_STRING.search(text, at):
        if met[0] == '"':
            return met.end(), False, True
        at = met.end() + 1  # over the escaped character, which may be in the next chunk
    return len(text), is_escaped or at > len(text), False


def escaped(text: str) -> str:
    """As the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _escape_met(met: re.Match[str]) -> str:
    return escaped(met[0])


def unquoted(text: str) -> str | None:
    """The value of a JSON string given without its quotes; None if it is no string."""
    try:
        value = json.loads(f'"{text}"', strict=False)  # a raw newline in a string is forgiven
        value.encode()  # half a surrogate pair could not be sent to anybody
    except ValueError:
        return None
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def is_object(text: str) -> bool:
    return text.lstrip()[:1] == "{" and is_json(text)

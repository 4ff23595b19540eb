"""What every tool call format shares: text in, pieces out, whatever the chunks' boundaries.

A format is written as a generator that reads as if all the text were there; where more is needed to
decide, it yields until there is more. From an opening mark until the call is known to be one, what
was read is held back and can still turn out to be text; from then on the client has seen the call,
and fragments of its arguments follow as they come. Text is never lost.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from neuron.chat.pieces import CallArguments, CallStarted, Text

__all__ = ["CallEvent", "CallMachine", "Steps", "escaped", "is_object", "unquoted"]

CallEvent = Text | CallStarted | CallArguments

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
"""What is read; each yield waits for more text."""

_WORD = re.compile(r"[\w.:/@$-]*")
_MAX_WORD = 256  # a "name" longer than this is text that has no spaces
_NOT_SPACE = re.compile(r"\S")
_IN_STRING = re.compile(r'["\\]')
_IN_CONTAINER = re.compile(r'["{}\[\]]')
_IN_SCALAR = re.compile(r"[,}\]\s]")
_CONTROL = re.compile(r"[\x00-\x1f]")
_CLOSERS = {"{": "}", "[": "]"}


class CallMachine(ABC):
    """Push machine over the content of one answer. A format overrides `_block`.

    `opens`: the marks that may begin a call, of which none may be part of another. `hidden`: marks
    that belong to the format's framing and are never text. `has_bare`: the very beginning of the
    answer may be a call without a mark.
    """

    def __init__(
        self,
        opens: Iterable[str],
        new_id: Callable[[], str],
        *,
        hidden: Iterable[str] = (),
        has_bare: bool = False,
    ) -> None:
        self._hidden = frozenset(hidden)
        self._marks = (*opens, *self._hidden)
        self._mark = re.compile("|".join(map(re.escape, self._marks)) or r"(?!)")
        heads = "".join(sorted({mark[0] for mark in self._marks}))
        self._is_start = re.compile(f"[{re.escape(heads)}]" if heads else r"(?!)").search
        self._new_id = new_id
        self._has_bare = has_bare
        self._events: list[CallEvent] = []
        self._pending = ""  # not looked at yet, or too short to decide
        self._held: list[str] | None = None  # of a call, while it can still turn out to be text
        self._waiting: list[str] = []  # arguments that came before their call's name
        self._spaces = ""  # between text and calls: shown only if more text follows
        self._is_between = False  # in text, outside of any call
        self._is_ended = False
        self._has_text = False
        self._calls = 0
        self._steps = self._run()
        next(self._steps)

    def feed(self, text: str) -> list[CallEvent]:
        """What `text` decides. A call's name comes before its arguments."""
        if self._is_between and not self._pending and self._is_start(text) is None:
            self._show(text)
        else:
            self._pending += text
            next(self._steps)
        return self._taken()

    def mark(self, header: str) -> tuple[list[CallEvent], bool]:
        """A marker, which the worker told apart by token id: what it decides, and whether it is
        part of a call. Most formats are written in the text itself and use no such markers."""
        return [], False

    def finish(self) -> list[CallEvent]:
        """What was still undecided when the answer ended."""
        self._end()
        if not self._calls and self._spaces:
            self._events.append(Text(self._spaces))
        self._spaces = ""
        return self._taken()

    @abstractmethod
    def _block(self, mark: str) -> Steps[None]:
        """Read what follows `mark`. `_open` as soon as it is certainly a call; return where it
        ends, or where it turns out to be none."""

    def _run(self) -> Steps[None]:
        if self._has_bare:
            yield
            yield from self._attempt("")
        while True:
            self._is_between = True
            mark = yield from self._text()
            if not mark:
                return
            self._is_between = False
            if mark not in self._hidden:
                yield from self._attempt(mark)

    def _attempt(self, mark: str) -> Steps[None]:
        self._hold(mark)
        yield from self._block(mark)
        if self._held is not None:
            self._show(self._held[0])
            self._pending = "".join(self._held[1:]) + self._pending
            self._held = None
        self._waiting.clear()

    def _end(self) -> None:
        self._is_ended = True
        for _ in self._steps:
            pass

    def _taken(self) -> list[CallEvent]:
        events, self._events = self._events, []
        return events

    # what is shown

    def _show(self, text: str) -> None:
        text = self._spaces + text
        shown = text.rstrip()
        self._spaces = text[len(shown) :]
        if self._calls and not self._has_text:
            shown = shown.lstrip()
        if shown:
            self._has_text = True
            self._events.append(Text(shown))

    def _hold(self, mark: str = "") -> None:
        """From here on, what is read may be given back: `mark` as text, the rest to be looked at
        again."""
        self._held = [mark]

    def _open(self, name: str) -> None:
        """It is a call."""
        self._held = None
        self._events.append(CallStarted(self._calls, self._new_id(), name))
        self._calls += 1
        for fragment in self._waiting:
            self._argue(fragment)
        self._waiting.clear()

    def _argue(self, fragment: str) -> None:
        """The next part of the arguments' JSON text, kept until the call is open."""
        if self._held is not None:
            self._waiting.append(fragment)
        elif fragment:
            self._events.append(CallArguments(self._calls - 1, fragment))

    # what is read

    def _take(self, size: int) -> str:
        text, self._pending = self._pending[:size], self._pending[size:]
        if self._held is not None:
            self._held.append(text)
        return text

    def _more(self) -> Steps[bool]:
        """False where the answer ended."""
        if self._is_ended:
            return False
        yield
        return True

    def _text(self) -> Steps[str]:
        """Show text up to the next mark, and read that; "" at the end."""
        while True:
            met = self._mark.search(self._pending)
            if met is not None:
                self._show(self._take(met.start()))
                return self._take(len(met[0]))
            kept = 0 if self._is_ended else self._overlap(*self._marks)
            self._show(self._take(len(self._pending) - kept))
            if not (yield from self._more()):
                return ""

    def _overlap(self, *marks: str) -> int:
        """How much of any mark's beginning the pending text ends in."""
        text = self._pending
        longest = 0
        for mark in marks:
            at = text.find(mark[0], max(0, len(text) - len(mark)))
            while 0 <= at < len(text) - longest:
                if mark.startswith(text[at:]):
                    longest = len(text) - at
                at = text.find(mark[0], at + 1)
        return longest

    def _peek(self) -> Steps[str]:
        """The next character that is no space, with the spaces before it still unread; "" at the
        end."""
        while True:
            met = _NOT_SPACE.search(self._pending)
            if met is not None:
                return met[0]
            if not (yield from self._more()):
                return ""

    def _next_of(self, *literals: str) -> Steps[str]:
        """Read the one of `literals` that comes next, with the spaces before it; else read nothing
        and return ""."""
        while True:
            met = _NOT_SPACE.search(self._pending)
            start = met.start() if met is not None else len(self._pending)
            for literal in literals:
                if self._pending.startswith(literal, start):
                    self._take(start + len(literal))
                    return literal
            rest = self._pending[start:]
            if not any(literal.startswith(rest) for literal in literals):
                return ""
            if not (yield from self._more()):
                return ""

    def _word(self) -> Steps[str]:
        """A name without quotes, and the spaces before it; "" if there is none."""
        if not (yield from self._peek()):
            return ""
        met = _NOT_SPACE.search(self._pending)
        start = met.start() if met is not None else 0
        while True:
            end = _WORD.match(self._pending, start).end()  # pyright: ignore[reportOptionalMemberAccess]
            if end - start > _MAX_WORD:
                return ""
            if end < len(self._pending) or not (yield from self._more()):
                return self._take(end)[start:]

    def _until(self, mark: str, limit: int = _MAX_WORD) -> Steps[str | None]:
        """The text before `mark`, which is read too; None if it is longer than `limit` or the
        answer ends first."""
        while True:
            at = self._pending.find(mark)
            if 0 <= at <= limit:
                return self._take(at + len(mark))[:at]
            if at > limit or len(self._pending) > limit + len(mark):
                return None
            if not (yield from self._more()):
                return None

    # JSON, as models write it

    def _string(self) -> Steps[str | None]:
        """The rest of a string whose opening quote was read; None if it is none or is cut short."""
        parts: list[str] = []
        is_escaped = False
        while True:
            at, is_escaped, is_closed = _scan_string(self._pending, 0, is_escaped)
            parts.append(self._take(at))
            if is_closed:
                return unquoted("".join(parts)[:-1])
            if not (yield from self._more()):
                return None

    def _arguments(self) -> Steps[bool]:
        """The object that comes next, as arguments. Whether it was whole."""
        return (yield from self._container(self._argue))

    def _container(self, sink: Callable[[str], None]) -> Steps[bool]:
        """An object or list, the spaces before it dropped, the rest to `sink` as it comes. Only
        brackets and quotes are matched, because whoever gets it can judge it better than we; and
        what JSON forbids inside strings, raw control characters, is escaped. False where a
        bracket does not match, which is left unread, or where the answer ends."""
        first = yield from self._next_of("{", "[")
        if not first:
            return False
        sink(first)
        closers = [_CLOSERS[first]]
        is_quoted = is_escaped = False
        while True:
            text, at = self._pending, 0
            parts: list[str] = []
            while at < len(text) and closers:
                begin = at
                if is_quoted:
                    at, is_escaped, is_closed = _scan_string(text, at, is_escaped)
                    is_quoted = not is_closed
                    parts.append(_CONTROL.sub(_escape_met, text[begin:at]))
                    continue
                met = _IN_CONTAINER.search(text, at)
                if met is None:
                    at = len(text)
                    parts.append(text[begin:])
                    break
                character = met[0]
                if character == '"':
                    is_quoted = True
                elif character in _CLOSERS:
                    closers.append(_CLOSERS[character])
                elif character != closers.pop():
                    sink("".join(parts) + text[begin : met.start()])
                    self._take(met.start())
                    return False
                at = met.end()
                parts.append(text[begin:at])
            sink("".join(parts))
            self._take(at)
            if not closers:
                return True
            if not (yield from self._more()):
                return False

    def _scalar(self) -> Steps[str]:
        """A number, true, false, null, or "" if it is none of them."""
        yield from self._peek()
        self._take(len(self._pending) - len(self._pending.lstrip()))
        parts: list[str] = []
        while True:
            met = _IN_SCALAR.search(self._pending)
            parts.append(self._take(met.start() if met else len(self._pending)))
            if met is not None or not (yield from self._more()):
                text = "".join(parts)
                return text if _is_json(text) else ""


def _scan_string(text: str, at: int, is_escaped: bool) -> tuple[int, bool, bool]:
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


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return False
    return True


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, parse_constant=_no_constant), dict)
    except (ValueError, RecursionError):
        return False

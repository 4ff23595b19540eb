"""What every tool call format shares: text in, pieces out, whatever the chunks' boundaries.

A format is written as a generator that reads as if all the text were there; where more is needed to
decide, it yields until there is more. From an opening mark until the call is known to be one, what
was read is held back and can still turn out to be text; from then on the client has seen the call,
and fragments of its arguments follow as they come. Text is never lost.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from neuron.chat.calls.json_text import Container, is_json, scan_string, unquoted
from neuron.chat.pieces import CallArguments, CallStarted, Text

__all__ = ["CallEvent", "CallMachine", "Steps"]

CallEvent = Text | CallStarted | CallArguments

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
"""What is read; each yield waits for more text."""

_WORD = re.compile(r"[\w.:/@$-]*")
_MAX_WORD = 256  # a "name" longer than this is text that has no spaces
_NOT_SPACE = re.compile(r"\S")
_SPACES = re.compile(r"\s*")
_IN_SCALAR = re.compile(r"[,}\]\s]")
_LEFT_OVER = re.compile(r"[\s,}\]]*")


class CallMachine(ABC):
    """Push machine over the content of one answer. A format overrides `_block`.

    `opens`: the marks that may begin a call; `closes`: those that end it, the last of them a block
    of calls. None may be part of another. `hidden`: marks that belong to the format's framing and
    are never text. `has_bare`: the very beginning of the answer may be a call without a mark.

    In a block that held a call and then something else, the closing marks are still no text.
    """

    def __init__(
        self,
        opens: Iterable[str],
        new_id: Callable[[], str],
        *,
        closes: Iterable[str] = (),
        hidden: Iterable[str] = (),
        has_bare: bool = False,
    ) -> None:
        self._opens = tuple(opens)
        self._closes = tuple(closes)
        self._hidden = frozenset(hidden)
        self._marks = (*self._opens, *self._closes, *self._hidden)
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
        self._is_unclosed = False  # what is read is in a block that held a call
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
    def _block(self, mark: str) -> Steps[bool]:
        """Read what follows `mark`. `_open` as soon as it is certainly a call; return where it
        ends, or where it turns out to be none. Whether it was read up to its closing mark."""

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
            if mark in self._opens:
                yield from self._attempt(mark)
            elif self._is_unclosed and mark in self._closes:
                self._is_unclosed = mark != self._closes[-1]
            elif mark not in self._hidden:
                self._show(mark)

    def _attempt(self, mark: str) -> Steps[None]:
        calls = self._calls
        self._hold(mark)
        is_closed = yield from self._block(mark)
        self._give_back()
        self._waiting.clear()
        self._is_unclosed = self._calls > calls and not is_closed

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

    def _hold(self, mark: str = "", rest: str = "") -> None:
        """From here on, what is read may be given back: `mark` as text, the rest, and what was read
        of it already, to be looked at again."""
        self._held = [mark, rest]

    def _give_back(self) -> None:
        """What is held."""
        if self._held is not None:
            self._show(self._held[0])
            self._pending = "".join(self._held[1:]) + self._pending
            self._held = None

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
        return (yield from self._next_after(_SPACES, literals))

    def _closing(self, *marks: str) -> Steps[str]:
        """As `_next_of`, over commas and closing brackets too: JSON has been repaired that has one
        too many, or one too few elsewhere."""
        return (yield from self._next_after(_LEFT_OVER, marks))

    def _next_after(self, passed: re.Pattern[str], literals: tuple[str, ...]) -> Steps[str]:
        while True:
            start = passed.match(self._pending).end()  # pyright: ignore[reportOptionalMemberAccess]
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

    def _until(self, mark: str, limit: int) -> Steps[str | None]:
        """The text before `mark`, which is read too; None if it is longer than `limit`, or the
        answer or the call ends first."""
        while True:
            at = self._pending.find(mark)
            before = self._pending if at < 0 else self._pending[:at]
            if any(close in before for close in self._closes):
                return None
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
            at, is_escaped, is_closed = scan_string(self._pending, 0, is_escaped)
            parts.append(self._take(at))
            if is_closed:
                return unquoted("".join(parts)[:-1])
            if not (yield from self._more()):
                return None

    def _arguments(self, around: str = "", also: tuple[str, ...] = ()) -> Steps[bool]:
        """The object that comes next, as arguments. Whether it was whole."""
        return (yield from self._container(self._argue, around, also))

    def _container(
        self, sink: Callable[[str], None], around: str = "", also: tuple[str, ...] = ()
    ) -> Steps[bool]:
        """An object or list, the spaces before it dropped, the rest to `sink` as it comes. False
        where it is broken: at a bracket that does not match, at a mark of the format or one of
        `also`, which are left unread, or where the answer ends. `around`: the closing brackets that
        belong behind it."""
        first = yield from self._next_of("{", "[")
        if not first:
            return False
        sink(first)
        # Inside of a string an opening mark is no end, if there is another: a call that is quoted
        # there must not be made.
        closes = (*(self._closes or self._opens), *also)
        marks = (*self._opens, *self._closes, *also)
        container = Container(first, marks, closes, around)
        while True:
            limit = len(self._pending) - (0 if self._is_ended else self._overlap(*marks))
            text, size, is_whole = container.read(self._pending, limit, is_all=self._is_ended)
            self._take(size)
            sink(text)
            if is_whole is not None:
                return is_whole
            yield from self._more()

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
                return text if is_json(text) else ""

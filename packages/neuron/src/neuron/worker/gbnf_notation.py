"""A grammar in llama.cpp's notation, read and measured before llama.cpp sees it. Pure.

llama.cpp copies what is repeated and follows each way in which a rule may begin, one by one; it
stops at no number of them, and nothing can stop it. Some grammars of thirty bytes keep it busy for
ever. So what it would have to do is counted here first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import chain

__all__ = ["problem_of"]

_LONGEST = 64 * 1024  # bytes
_DEEPEST = 128  # llama.cpp reads brackets recursively
_MOST_REPEATS = 2000  # llama.cpp's own: more than so many at most are any number
_MOST_ELEMENTS = 2**18  # eight bytes each, several times over
_MOST_WAYS = 4096
"""What a rule may begin with, counted as often as it is come upon. llama.cpp compares each with all
before: 8,000 take it a tenth of a second, twice as many four times as long."""

_WORD = re.compile(
    r"""(?P<blank>[ \t]+ | \#[^\r\n]*)
    | (?P<line>[\r\n])
    | "(?P<literal>(?:\\.|[^"\\])*)"
    | \[(?P<set>(?:\\.|[^\]\\])*)\]
    | (?P<token>!?<[^>]*>)
    | (?P<name>[a-zA-Z0-9-]+)
    | (?P<defines>::=)
    | \{(?P<times>\s*[0-9]{1,9}\s*(?:,\s*(?:[0-9]{1,9}\s*)?)?)\}
    | (?P<mark>[.|()*+?])""",
    re.VERBOSE | re.DOTALL,
)
_TIMES = {"*": "0,", "+": "1,", "?": "0,1"}


def problem_of(text: str) -> str | None:
    """Why llama.cpp is not to see this; None: it may. An empty string where it cannot be read."""
    if len(text.encode()) > _LONGEST:
        return f"longer than {_LONGEST} bytes"
    if "\0" in text:
        return "has a zero character"
    try:
        return _Reader(text).read().problem()
    except _UnreadableError:
        return ""
    except _ProblemError as error:
        return str(error)


class _UnreadableError(Exception):
    pass


class _ProblemError(Exception):
    """Says what it is."""


@dataclass(slots=True)
class _Item:
    """`rule`: where it refers to one; None: characters or a token. It stands `least` times, and up
    to `optional` times more; `is_endless`: any number of times more. `elements`: of llama.cpp's,
    each time."""

    rule: int | None
    elements: int
    least: int = 1
    optional: int = 0
    is_endless: bool = False

    @property
    def is_single(self) -> bool:
        return self.least + self.optional == 1 and not self.is_endless

    @property
    def most(self) -> int:
        """That are written out."""
        return self.least + self.optional + self.is_endless

    def may_be_empty(self, empty: set[int]) -> bool:
        return self.least == 0 or self.rule in empty

    @property
    def all_elements(self) -> int:
        """Each optional one is the end of a rule of its own, with a reference to the next."""
        return self.least * self.elements + (self.optional + self.is_endless) * (self.elements + 3)


class _Rules:
    """By number: each one's alternatives, sequences of items. A bracket is a rule, too."""

    def __init__(self) -> None:
        self.alternatives: list[list[list[_Item]]] = []
        self._names: dict[str, int] = {}
        self.elements = 0

    def new(self) -> int:
        self.alternatives.append([])
        return len(self.alternatives) - 1

    def named(self, name: str) -> int:
        if name not in self._names:
            self._names[name] = self.new()
        return self._names[name]

    def add(self, elements: int) -> None:
        self.elements += elements
        if self.elements > _MOST_ELEMENTS:
            raise _ProblemError(f"more than {_MOST_ELEMENTS} elements, repetitions written out")

    def problem(self) -> str | None:
        empty = self._that_may_be_empty()
        try:
            order = list(TopologicalSorter(self._followed(empty)).static_order())
        except CycleError:
            return "left recursion: a rule may begin with itself"
        ways = [0] * len(self.alternatives)
        for rule in order:
            begins = (next(_ways(sequence, ways, empty), 0) for sequence in self.alternatives[rule])
            ways[rule] = 1 + sum(begins)
            if ways[rule] > _MOST_WAYS:
                return f"a rule may begin in more than {_MOST_WAYS} ways"
        for sequence in chain.from_iterable(self.alternatives):
            if max(_ways(sequence, ways, empty), default=0) > _MOST_WAYS:
                return f"a rule may go on in more than {_MOST_WAYS} ways"
        return None

    def _followed(self, empty: set[int]) -> dict[int, set[int]]:
        """For each rule those that it may begin with. That one ends with itself costs nothing: so
        llama.cpp writes a repetition of what may be empty."""
        followed: dict[int, set[int]] = {}
        for rule, sequences in enumerate(self.alternatives):
            begins = followed[rule] = set()
            for sequence in sequences:
                for item in sequence:
                    is_tail = item is sequence[-1] and item.rule == rule and item.is_single
                    if item.rule is not None and not is_tail:
                        begins.add(item.rule)
                    if not item.may_be_empty(empty):
                        break
        return followed

    def _that_may_be_empty(self) -> set[int]:
        """In one pass: each sequence counts down what in it is not yet known to be."""
        missing: list[int] = []
        owner: list[int] = []
        users: dict[int, list[int]] = {}
        found: list[int] = []
        for rule, sequences in enumerate(self.alternatives):
            for sequence in sequences:
                needed = [item.rule for item in sequence if item.least]
                for other in needed:
                    if other is not None:
                        users.setdefault(other, []).append(len(missing))
                missing.append(len(needed))
                owner.append(rule)
                if not needed:
                    found.append(rule)
        empty: set[int] = set()
        while found:
            rule = found.pop()
            if rule in empty:
                continue
            empty.add(rule)
            for sequence in users.get(rule, ()):
                missing[sequence] -= 1
                if missing[sequence] == 0:
                    found.append(owner[sequence])
        return empty


def _ways(sequence: list[_Item], ways: list[int], empty: set[int]) -> Iterator[int]:
    """In how many it may begin; then in how many it may go on after each place in it."""
    counts: list[int] = []
    after = 0
    for item in reversed(sequence):
        once = 1 if item.rule is None else 1 + ways[item.rule]
        here = once * (item.most if item.rule in empty else 1)
        after = here + (after if item.may_be_empty(empty) else 0)
        counts.append(after)
    return reversed(counts)


class _Reader:
    """Reads what llama.cpp reads, and nothing that it does not read as the same."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._kind: str | None = None
        self._value = ""
        self._rules = _Rules()

    def read(self) -> _Rules:
        """Raises _UnreadableError and _ProblemError."""
        self._next(newlines=True)
        while self._kind is not None:
            rule = self._rules.named(self._take("name"))
            self._take("defines", newlines=True)
            # Of a name defined twice llama.cpp knows the last.
            self._rules.alternatives[rule] = self._alternatives(0)
            if self._kind is not None:
                self._take("line", newlines=True)
        return self._rules

    def _next(self, *, newlines: bool) -> None:
        while True:
            if self._at == len(self._text):
                self._kind = None
                return
            met = _WORD.match(self._text, self._at)
            if met is None:
                raise _UnreadableError
            self._at = met.end()
            self._kind = met.lastgroup
            if self._kind == "blank" or (newlines and self._kind == "line"):
                continue
            assert self._kind is not None
            self._value = met[self._kind]
            return

    def _take(self, kind: str, *, newlines: bool = False) -> str:
        if self._kind != kind:
            raise _UnreadableError
        value = self._value
        self._next(newlines=newlines)
        return value

    def _alternatives(self, depth: int) -> list[list[_Item]]:
        if depth > _DEEPEST:
            raise _ProblemError(f"brackets nested more than {_DEEPEST} deep")
        sequences = [self._sequence(depth)]
        while (self._kind, self._value) == ("mark", "|"):
            self._next(newlines=True)
            sequences.append(self._sequence(depth))
        self._rules.add(len(sequences))
        return sequences

    def _sequence(self, depth: int) -> list[_Item]:
        items: list[_Item] = []
        can_repeat = False
        while self._kind is not None and self._kind not in ("line", "defines"):
            kind, value = self._kind, self._value
            if kind == "mark" and value in "|)":
                break
            is_times = kind == "times" or (kind == "mark" and value in _TIMES)
            if kind == "mark" and value == "(":
                self._next(newlines=True)
                rule = self._rules.new()
                self._rules.alternatives[rule] = self._alternatives(depth + 1)
                if (self._kind, self._value) != ("mark", ")"):
                    raise _UnreadableError
                item = _Item(rule, 1)
            elif is_times:
                if not can_repeat:
                    raise _UnreadableError
                item = self._repeated(items.pop(), _TIMES.get(value, value))
            elif kind == "name":
                item = _Item(self._rules.named(value), 1)
            else:  # an empty literal is nothing
                item = _Item(None, len(value) if kind in ("literal", "set") else 1)
            self._next(newlines=depth > 0)
            can_repeat = item.elements > 0 and item.most > 0
            if can_repeat:
                self._rules.add(item.all_elements)
                items.append(item)
        return items

    def _repeated(self, item: _Item, times: str) -> _Item:
        least, comma, most = (part.strip() for part in times.partition(","))
        if (item.least, item.most) != (1, 1):
            rule = self._rules.new()
            self._rules.alternatives[rule] = [[item]]
            item = _Item(rule, item.all_elements)
        item.least = int(least)
        if comma and (not most or int(most) > _MOST_REPEATS):
            item.is_endless = True
        else:
            item.optional = int(most or least) - item.least
        if item.least > _MOST_REPEATS:
            raise _ProblemError(f"{item.least} repetitions, more than {_MOST_REPEATS}")
        if item.optional < 0:
            raise _ProblemError(f"at least {item.least} and at most {most} repetitions")
        return item

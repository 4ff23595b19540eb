"""Reads of a PromQL query which series it needs: metrics, label matchers, labels grouped by.

Knows as much of the language as the dashboard uses, and errs towards complaint: a word that is no
operator here counts as a metric, which no scrape will have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Matcher", "Selector", "selectors"]

AGGREGATIONS = frozenset({"avg", "count", "max", "min", "sum"})
OPERATORS = frozenset({"and", "bool", "offset", "or", "unless"})

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*")
      | (?P<range>\[[^\[\]]+\])
      | (?P<value>\$\w+|\d[\w.]*)
      | (?P<name>[a-zA-Z_:][\w:]*)
      | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^=<>(){},])
    )\s*""",
    re.VERBOSE,
)


class Matcher(NamedTuple):
    label: str
    sign: str
    value: str

    def takes(self, labels: Mapping[str, str]) -> bool:
        """Whether a series with these labels is meant, as far as this matcher goes. A dashboard's
        variable ($node) stands for any value of a label that the series must have."""
        value = labels.get(self.label, "")
        if self.value.startswith("$"):
            return self.label in labels
        is_same = bool(re.fullmatch(self.value, value)) if "~" in self.sign else value == self.value
        return is_same != self.sign.startswith("!")


class Selector(NamedTuple):
    """Series that a query reads. `by`: what the aggregations around them group by; None where
    there is none, so that all labels are kept."""

    metric: str
    matchers: tuple[Matcher, ...]
    by: frozenset[str] | None


def selectors(query: str) -> list[Selector]:
    """In order of appearance. Raises ValueError for what cannot be read, `by` behind its operand
    included."""
    return _Reader(query).read()


class _Reader:
    def __init__(self, query: str) -> None:
        self._query = query
        self._tokens = _tokens(query)
        self._at = 0
        self._found: list[Selector] = []

    def read(self) -> list[Selector]:
        self._expression(None)
        if self._at < len(self._tokens):
            raise self._error("a parenthesis too many")
        return self._found

    def _expression(self, by: frozenset[str] | None) -> None:
        """Up to the end, or to the parenthesis that closes it."""
        while self._peek() not in ("", ")"):
            kind, text = self._next()
            if kind == "name" and text not in OPERATORS:
                self._word(text, by)
            elif text == "(":
                self._operand(by)
            elif text in ("{", "}"):
                raise self._error("braces without a metric")

    def _word(self, word: str, by: frozenset[str] | None) -> None:
        if word in AGGREGATIONS:
            if self._peek() == "by":
                self._next()
                by = frozenset(self._list("(", ")")) | (by or frozenset())
            else:
                by = by or frozenset()
            self._expect("(")
            self._operand(by)
            if self._peek() == "by":
                raise self._error("write by before the operand")
        elif self._peek() == "(":
            self._next()
            self._operand(by)
        else:
            matchers = self._matchers() if self._peek() == "{" else ()
            self._found.append(Selector(word, matchers, by))

    def _operand(self, by: frozenset[str] | None) -> None:
        self._expression(by)
        self._expect(")")

    def _matchers(self) -> tuple[Matcher, ...]:
        words = self._list("{", "}")
        if len(words) % 3 or any(sign not in ("=", "!=", "=~", "!~") for sign in words[1::3]):
            raise self._error("matchers that are not label, sign, text")
        return tuple(
            Matcher(label, sign, text[1:-1].replace("\\\\", "\\"))
            for label, sign, text in zip(words[::3], words[1::3], words[2::3], strict=True)
        )

    def _list(self, opening: str, closing: str) -> list[str]:
        """What is between two signs, without the commas."""
        self._expect(opening)
        words = []
        while (text := self._next()[1]) != closing:
            if text != ",":
                words.append(text)
        return words

    def _expect(self, sign: str) -> None:
        if self._next()[1] != sign:
            raise self._error(f"no {sign}")

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _next(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise self._error("an end too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{what}, at word {self._at} of {self._query!r}")


def _tokens(query: str) -> list[tuple[str, str]]:
    """(kind, text), the kinds being the names in _TOKEN."""
    found, at = [], 0
    while at < len(query):
        match = _TOKEN.match(query, at)
        if match is None:
            raise ValueError(f"cannot read {query[at:]!r}")
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return found

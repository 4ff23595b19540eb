"""The filters and tests of chat templates' dialect, each of which takes its time and memory from
the allowance of the render, and what has to be checked before a value is repeated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.filters import do_indent, do_join, do_replace
from jinja2.runtime import Undefined

from neuron.chat.allowance import (
    NEW_ITEM_BYTES,
    TemplateLimit,
    check_items,
    check_length,
    limited,
    made,
    tick,
    weigh,
)

__all__ = [
    "GROWING",
    "check_format",
    "check_method",
    "check_number",
    "watched_filters",
    "watched_tests",
]

_MAX_SMALL = 1000  # characters or items, or a width, where nothing big is worked on


# checks


def check_number(value: Any) -> None:
    if isinstance(value, int) and abs(value) >> 64:
        raise TemplateLimit("an integer of more than 64 bits")


# A width of four digits, or one given as an argument, is no formatting.
_WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")


def check_format(pattern: str, values: Iterable[Any]) -> None:
    """Before `%`, `format` and their filters: each field may repeat each value."""
    if _WIDE.search(pattern):
        raise TemplateLimit(f"a format with a huge width: {pattern[:40]!r}")
    fields = pattern.count("%") + pattern.count("{")
    check_length(len(pattern) + fields * (1000 + sum(map(weigh, values))))


GROWING = frozenset(
    {
        "center", "encode", "expandtabs", "format", "format_map", "join", "ljust", "maketrans",
        "replace", "rjust", "rsplit", "split", "splitlines", "translate", "zfill",
    }
)  # fmt: skip
"""The methods of a text that may make more of it than there is."""


def check_method(
    owner: str, method: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    """Of those that are GROWING."""
    if method in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        width = next((n for n in (*arguments, *named.values()) if isinstance(n, int)), 0)
        check_length(width * (owner.count("\t") if method == "expandtabs" else 1))
    elif method == "replace" and len(arguments) > 1:
        _check_replace(owner, *arguments[:2])
    elif method == "join" and arguments:
        _check_joined(owner, arguments[0])
    elif method == "format":
        check_format(owner, (*arguments, *named.values()))
    elif method in ("split", "rsplit", "splitlines"):
        separator = next((s for s in (*arguments, *named.values()) if isinstance(s, str)), None)
        check_items(owner.count(separator) if separator else _breaks(owner))
    elif method in ("encode", "format_map", "maketrans", "translate"):
        raise TemplateLimit(f"str.{method}")


def _breaks(text: str) -> int:
    """At most how many words or lines a text has."""
    return sum(map(text.count, " \n\t\r")) if len(text) > 1000 else 0


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        check_length(len(text) + text.count(old) * len(new))


def _check_joined(separator: str, items: Any) -> None:
    if isinstance(items, Sized):
        check_length(len(separator) * len(items))
        weigh(items)
    elif not isinstance(items, Undefined):
        raise TemplateLimit("joining what has no length")


# filters


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter it escapes nothing for HTML: a prompt is no web page."""
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > 64 or any(len(separator) > 64 for separator in separators or ()):
        raise TemplateLimit("JSON that is spread too wide")
    # A character takes up to twelve as an escape, an item a line of its own.
    check_length(weigh(value) * (2 + width // 4 if indent else 2))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _format(pattern: str, *arguments: Any, **named: Any) -> str:
    check_format(pattern, (*arguments, *named.values()))
    return pattern % (named or arguments)


@jinja2.pass_eval_context
def _replace(eval_context: nodes.EvalContext, text: Any, old: Any, new: Any, *count: Any) -> str:
    weigh(text)
    _check_replace(str(text), str(old), str(new))
    return do_replace(eval_context, text, old, new, *count)


@jinja2.pass_eval_context
def _join(
    eval_context: nodes.EvalContext, value: Any, d: str = "", attribute: str | None = None
) -> Any:
    items = list(value)
    _check_joined(str(d), items)
    return do_join(eval_context, items, d, attribute)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = len(width) if isinstance(width, str) else width
    s = s if isinstance(s, str) else str(s)
    check_length(len(s) + size * (s.count("\n") + 1))
    return do_indent(s, width, first, blank)


_CHECKED: dict[str, Callable[..., Any]] = {
    "format": _format, "indent": _indent, "join": _join, "replace": _replace, "tojson": _tojson,
}  # fmt: skip
# What they make is about as big as what they are given.
_EVEN = frozenset(
    {
        "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
        "float", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
        "rejectattr", "reverse", "safe", "select", "selectattr", "sort", "string", "sum", "title",
        "trim", "unique", "upper",
    }
)  # fmt: skip


# Those that print what they are given, or compare its items.
_PRINTING = frozenset(
    {
        "capitalize", "dictsort", "e", "escape", "lower", "max", "min", "safe", "sort", "string",
        "title", "trim", "unique", "upper",
    }
)  # fmt: skip
# Those that take a text apart into its characters, each of which is a value then.
_WALKING = frozenset(
    {
        "join", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr",
        "sort", "sum", "unique",
    }
)  # fmt: skip


def _watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes its time and memory from the allowance. Those that are seldom used take
    small values only."""
    context_first = hasattr(method, "jinja_pass_arg")
    is_small = name not in _EVEN and name not in _CHECKED
    is_walking = name in _WALKING
    is_printing = name in _PRINTING

    def watched(*arguments: Any, **named: Any) -> Any:
        tick()
        given = arguments[1:] if context_first else arguments
        value = given[0] if given else None
        if is_small:
            if weigh(value) > _MAX_SMALL or not _are_small((*given[1:], *named.values())):
                raise TemplateLimit(f"{name}: a value too big for a filter that is seldom used")
        elif isinstance(value, str):
            if is_walking:
                check_items(len(value))
        elif is_printing:
            weigh(value)
        elif isinstance(value, Iterator):
            # A pipeline of generators is walked here, where it is counted.
            given = (limited(value), *given[1:])
            arguments = (arguments[0], *given) if context_first else given
        return made(method(*arguments, **named), NEW_ITEM_BYTES)

    if context_first:
        watched.jinja_pass_arg = method.jinja_pass_arg  # pyright: ignore
    return watched


def _are_small(values: Iterable[Any]) -> bool:
    return all(
        value <= _MAX_SMALL if isinstance(value, int) else weigh(value) <= _MAX_SMALL
        for value in values
    )


_COMPARING = (
    "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan",
    "<=", "le", "in",
)  # fmt: skip


def _weighing(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test that compares."""

    def weighing(value: Any, *arguments: Any) -> Any:
        tick()
        if not isinstance(value, str | int | float | None):
            weigh((value, arguments))
        return test(value, *arguments)

    return weighing


def watched_filters(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """jinja2's own, and the dialect's in their place, all watched."""
    return {name: _watched(name, method) for name, method in {**filters, **_CHECKED}.items()}


def watched_tests(tests: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Those of jinja2's own that compare, watched."""
    return {name: _weighing(tests[name]) for name in _COMPARING}

"""What one render of an untrusted template may use: time, and memory for what it makes on the way.

Nothing measures a render from outside, so whatever can be repeated asks for the time, and whatever
makes a value says how big it is. A container that holds another twice is small in memory and huge
in print; so values are weighed as they would be printed, before anything prints or compares them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2

__all__ = [
    "MAX_ITEMS",
    "MAX_RENDER_S",
    "MAX_VALUE",
    "NEW_ITEM_BYTES",
    "TemplateLimit",
    "allowed",
    "charge",
    "check_items",
    "check_length",
    "limited",
    "made",
    "tick",
    "turned",
    "weigh",
]

MAX_RENDER_S = 1.0
MAX_VALUE = 8 * 1024 * 1024  # characters of the prompt, or of any one value on the way
MAX_ITEMS = 250_000  # of any one list
_MAX_MADE_BYTES = 96 * 1024 * 1024  # of all values of one render, as if none were freed
_ITEM_BYTES = 4  # a list's slot is 8, but lists that are built up are freed at every step
NEW_ITEM_BYTES = 64  # a short string, and its slot
_ITEM_WEIGHT = 32  # what an item counts for, in characters: more than most print as

_PLAIN = (dict, list, tuple)
_SCALARS = (bool, int, float, type(None))
_CONTAINERS = (list, tuple, set, frozenset, Mapping, KeysView, ValuesView, ItemsView)


class TemplateLimit(jinja2.TemplateError):
    """The template wants more time or memory than any honest one needs."""


class _Allowance:
    __slots__ = ("deadline", "room")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.room = _MAX_MADE_BYTES


_current: ContextVar[_Allowance | None] = ContextVar("allowance", default=None)


@contextmanager
def allowed(deadline: float) -> Iterator[None]:
    """For one render, which ends by `deadline` on the monotonic clock."""
    token = _current.set(_Allowance(deadline))
    try:
        yield
    finally:
        _current.reset(token)


def tick() -> None:
    """Called wherever a template can spend time. Outside of a render there is none to spend: the
    compiler folds constants."""
    allowance = _current.get()
    if allowance is not None and time.monotonic() > allowance.deadline:
        raise _too_long()


def charge(size_bytes: int) -> None:
    allowance = _current.get()
    if allowance is None:
        return
    allowance.room -= size_bytes
    if allowance.room < 0:
        raise _too_much()


def turned(_: object, size_bytes: int) -> None:
    """One turn of a loop, or one call of a macro, that can print so many characters: a tick and a
    charge at once. Compiled templates call it, with a context."""
    allowance = _current.get()
    if allowance is None:
        return
    if time.monotonic() > allowance.deadline:
        raise _too_long()
    allowance.room -= size_bytes
    if allowance.room < 0:
        raise _too_much()


def _too_long() -> TemplateLimit:
    return TemplateLimit(f"rendering took longer than {MAX_RENDER_S} s")


def _too_much() -> TemplateLimit:
    return TemplateLimit(f"values of more than {_MAX_MADE_BYTES} bytes")


def made(value: Any, item_bytes: int = _ITEM_BYTES) -> Any:
    """`value`, which is new, charged for; if its items are new too, at NEW_ITEM_BYTES each."""
    if isinstance(value, str):
        size = len(value)
        if size > MAX_VALUE:
            check_length(size)
        allowance = _current.get()  # not by `charge`: this is called most of all
        if allowance is not None:
            allowance.room -= sys.getsizeof(value) if size > 100 else 100
            if allowance.room < 0:
                raise _too_much()
    elif isinstance(value, list | tuple):
        check_items(len(value))
        charge(item_bytes * len(value))
    return value


def check_length(characters: int) -> None:
    if characters > MAX_VALUE:
        raise TemplateLimit(f"a value of more than {MAX_VALUE} characters")


def check_items(items: int) -> None:
    if items > MAX_ITEMS:
        raise TemplateLimit(f"a list of more than {MAX_ITEMS} items")


def limited(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, as long as time and numbers allow."""
    for count, item in enumerate(items):
        if not count % 64:
            tick()
            check_items(count)
        yield item


def weigh(value: Any) -> int:
    """About how many characters `value` prints as."""
    kind = type(value)
    if kind is str:
        return len(value)
    if kind in _SCALARS:
        return _ITEM_WEIGHT
    if kind not in _PLAIN and not isinstance(value, _CONTAINERS):
        return len(value) if isinstance(value, str) else _ITEM_WEIGHT
    weight = 0
    rest: list[Any] = [value]
    while rest:
        inner = rest.pop()
        kind = type(inner)
        if kind is str:
            weight += len(inner)
        elif kind is dict:
            weight += _ITEM_WEIGHT * len(inner)
            rest += inner
            rest += inner.values()
        elif kind is list or kind is tuple:
            weight += _ITEM_WEIGHT * len(inner)
            rest += inner
        elif isinstance(inner, _CONTAINERS):
            weight += _ITEM_WEIGHT * len(inner)
            rest += inner
            if isinstance(inner, Mapping):
                rest += inner.values()
        else:
            weight += len(inner) if isinstance(inner, str) else _ITEM_WEIGHT
        if weight > MAX_VALUE:
            check_length(weight)
    return weight

"""Fields of the plain objects that requests are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cortex_core.errors import InvalidRequest

__all__ = ["string", "unread_of_tools"]


def string(values: Mapping[str, Any], name: str, at: str, default: str | None = None) -> str:
    """The string `name` of the object at the place `at`; `default` None: required. Raises
    InvalidRequest that names the place."""
    value = values.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        param = f"{at}.{name}"
        problem = "missing required parameter" if value is None else "expected a string"
        raise InvalidRequest(f"{param}: {problem}", param=param)
    return value


def unread_of_tools(tools: Iterable[Mapping[str, Any]], read: Collection[str]) -> list[str]:
    """What else the tools hold, as names for `x-cortex-ignored`. Vendors add to what a tool may
    hold, and clients send it to everybody; their own word may be any text."""
    unread = {key for tool in tools for key, value in tool.items() if value is not None} - {*read}
    words = (f"tools.{key}" if key.isascii() and key.isidentifier() else "tools" for key in unread)
    return sorted(set(words))

"""Fields of the plain objects that requests are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cortex_core.errors import InvalidRequest

__all__ = ["string"]


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

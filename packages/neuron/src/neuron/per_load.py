"""What is made of a model once it is loaded, and is good until it is loaded anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from cortex_core.wire.ipc import ModelInfo

__all__ = ["PerLoad"]

T = TypeVar("T")


class PerLoad(Generic[T]):
    """`make(model, info)` is called at a model's first use after each load."""

    def __init__(self, make: Callable[[str, ModelInfo], T]) -> None:
        self._make = make
        self._made: dict[str, tuple[ModelInfo, T]] = {}

    def of(self, model: str, info: ModelInfo) -> T:
        """`info` is of the model's present load."""
        known = self._made.get(model)
        if known is None or (known[0] is not info and known[0] != info):
            known = self._made[model] = (info, self._make(model, info))
        return known[1]

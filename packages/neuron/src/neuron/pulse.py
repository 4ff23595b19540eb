"""Wake everybody who waits for something to have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Pulse"]


class Pulse:
    """`beat()` wakes all waiters; a waiter looks for itself whether its moment has come."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def beat(self) -> None:
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Return once `is_true()`; it is asked again after every beat. No limit of its own."""
        while not is_true():
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._next)

"""Who may still come in, and who is still inside: what a drain needs to know."""

from __future__ import annotations

import asyncio
import contextlib

from cortex_core.errors import ShuttingDown
from cortex_gateway.vigil import Vigil

__all__ = ["Admission"]


class Admission:
    """Counts requests from their first byte to their last."""

    def __init__(self) -> None:
        self.is_draining = False
        self.active = 0
        self._is_hurried = False
        self._news = asyncio.Event()
        self._vigils: set[Vigil] = set()

    def __enter__(self) -> None:
        """Raises ShuttingDown during a drain."""
        if self.is_draining:
            raise ShuttingDown("the gateway is shutting down; try again shortly")
        self.active += 1

    def __exit__(self, *exc: object) -> None:
        self.active -= 1
        if not self.active:
            self._news.set()

    def watch(self, vigil: Vigil) -> None:
        """`vigil`'s request can be ended by `drain` from now on."""
        self._vigils.add(vigil)

    def unwatch(self, vigil: Vigil) -> None:
        self._vigils.discard(vigil)

    def hurry(self) -> None:
        """A drain, under way or to come, waits no longer."""
        self._is_hurried = True
        self._news.set()

    async def drain(self, for_s: float) -> None:
        """Admit nobody; return when everybody has left. Who is still inside after `for_s` seconds
        is told so and ended."""
        self.is_draining = True
        if await self._is_empty_within(0 if self._is_hurried else for_s):
            return
        for vigil in list(self._vigils):
            vigil.end(ShuttingDown("the gateway is shutting down and cut this answer short"))
        await self._is_empty_within(1.0)

    async def _is_empty_within(self, for_s: float) -> bool:
        self._news.clear()
        if self.active:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), for_s)
        return not self.active

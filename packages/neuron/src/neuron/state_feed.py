"""The node's state as numbered versions, for any number of subscribers of any speed.

A subscriber always gets the latest whole state and may miss versions between two looks, so a slow
one costs nothing. Changes of phase go out at once; changes of mere counts at most every
`COALESCE_S`, because a busy node has thousands of them a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from cortex_core.fleet.discovery import NodeState
from neuron.pulse import Pulse

__all__ = ["COALESCE_S", "StateFeed"]

COALESCE_S = 0.25


class StateFeed:
    """`build(version)` makes the state; it is called once per version."""

    def __init__(self, build: Callable[[int], NodeState]) -> None:
        self._build = build
        self._pulse = Pulse()
        self._pending: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._published_at = float("-inf")
        self.is_closed = False
        self.state = build(1)
        self._encoded = msgspec.json.encode(self.state)

    @property
    def encoded(self) -> bytes:
        """The latest state as JSON."""
        return self._encoded

    def changed(self, urgent: bool) -> None:
        """Something has changed. All changes of one turn of the event loop make one version."""
        loop = asyncio.get_running_loop()
        at = loop.time() if urgent else max(loop.time(), self._published_at + COALESCE_S)
        if self._pending is not None:
            if self._due <= at:
                return
            self._pending.cancel()
        self._pending, self._due = loop.call_at(at, self._publish), at

    async def beyond(self, version: int) -> NodeState | None:
        """The first state seen with a greater version; None when the feed has been closed."""
        await self._pulse.until(lambda: self.is_closed or self.state.version > version)
        return None if self.is_closed else self.state

    def close(self) -> None:
        """End every subscription."""
        if self._pending is not None:
            self._pending.cancel()
        self.is_closed = True
        self._pulse.beat()

    def _publish(self) -> None:
        self._pending = None
        self._published_at = asyncio.get_running_loop().time()
        self.state = self._build(self.state.version + 1)
        self._encoded = msgspec.json.encode(self.state)
        self._pulse.beat()

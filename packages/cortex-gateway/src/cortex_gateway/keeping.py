"""What operators have said and loads have taught, from one process of the gateway to the next.

Owns the task that writes it to the state file; without one it lasts as long as the process.
"""

from __future__ import annotations

import asyncio
import contextlib

from cortex_core.fleet.events import DrainWanted, PinWanted
from cortex_gateway.fleet import Fleet
from cortex_gateway.statefile import Kept, StateFile

__all__ = ["Keeping"]

# What a load taught is written this much later, at most.
SAVE_S = 10.0


class Keeping:
    """An async context manager: what was kept is there inside, and is written when it ends."""

    def __init__(self, fleet: Fleet, file: StateFile | None) -> None:
        self._fleet = fleet
        self._file = file
        self._written = Kept()
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> Keeping:
        if self._file is not None:
            kept = self._written = await asyncio.to_thread(self._file.read)
            self._fleet.conductor.ledger.restore(kept.ledger)
            for model in kept.pins:
                self._fleet.handle(PinWanted(model, True))
            for node in kept.drains:
                self._fleet.handle(DrainWanted(node, True))
            self._task = asyncio.create_task(self._save_often(), name="save the state")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._file is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            await self.save()

    async def pin(self, model: str, is_pinned: bool) -> bool:
        """Whether the next process will know; returns once it is written."""
        self._fleet.handle(PinWanted(model, is_pinned))
        return await self.save()

    async def drain(self, node: str, is_draining: bool) -> bool:
        """As `pin`."""
        self._fleet.handle(DrainWanted(node, is_draining))
        return await self.save()

    async def save(self) -> bool:
        """Write what has changed, if anything has. Whether all of it is in the file."""
        if self._file is None:
            return False
        async with self._writing:
            conductor = self._fleet.conductor
            ledger = tuple(conductor.ledger.export())
            kept = Kept(ledger, tuple(sorted(conductor.pins)), tuple(sorted(conductor.drained)))
            if kept != self._written and await asyncio.to_thread(self._file.write, kept):
                self._written = kept
            return kept == self._written

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            await self.save()

"""Loads and unloads as things to ask about: an id, progress, a result. Bounded history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from cortex_core.errors import CortexError, NotFound
from cortex_core.fleet.discovery import ModelState, Operation

__all__ = ["OperationRecord", "Operations"]

_MOST_KEPT = 256


class OperationRecord:
    """One operation. `progress` is asked while it runs; `task` carries it out."""

    def __init__(
        self,
        identity: str,
        kind: Literal["load", "unload"],
        model: str,
        progress: Callable[[], float],
    ) -> None:
        self.id = identity
        self.kind: Literal["load", "unload"] = kind
        self.model = model
        self.task: asyncio.Task[None] | None = None
        self._progress = progress
        self._result: ModelState | None = None
        self._error: CortexError | None = None
        self._ended = asyncio.Event()

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    def succeed(self, result: ModelState | None) -> None:
        self._result = result
        self._ended.set()

    def fail(self, error: CortexError) -> None:
        self._error = error
        self._ended.set()

    async def ended(self) -> None:
        """Until it has succeeded; raises the error it failed with."""
        await self._ended.wait()
        if self._error is not None:
            raise CortexError.from_fault(self._error.fault)

    async def settled(self) -> None:
        """Until it has ended, either way."""
        await self._ended.wait()

    def report(self) -> Operation:
        if self.is_running:
            return Operation(self.id, self.kind, self.model, "running", self._progress())
        if self._error is not None:
            fault = self._error.fault
            return Operation(self.id, self.kind, self.model, "failed", fault=fault)
        return Operation(self.id, self.kind, self.model, "done", 1.0, self._result)


class Operations:
    """Every running operation and the last ones that have ended."""

    def __init__(self, boot: str) -> None:
        self._prefix = boot[:8]
        self._count = 0
        self._records: dict[str, OperationRecord] = {}

    def begin(
        self,
        kind: Literal["load", "unload"],
        model: str,
        progress: Callable[[], float] = lambda: 0.0,
    ) -> OperationRecord:
        self._forget()
        self._count += 1
        record = OperationRecord(f"{kind}-{self._prefix}-{self._count}", kind, model, progress)
        self._records[record.id] = record
        return record

    def find(self, identity: str) -> OperationRecord:
        """Raises NotFound."""
        record = self._records.get(identity)
        if record is None:
            raise NotFound(f"no operation {identity[:100]!r}; only the last {_MOST_KEPT} are kept")
        return record

    def running(self) -> list[OperationRecord]:
        return [record for record in self._records.values() if record.is_running]

    def _forget(self) -> None:
        excess = len(self._records) - _MOST_KEPT + 1
        if excess > 0:
            ended = [i for i, record in self._records.items() if not record.is_running]
            for identity in ended[:excess]:
                del self._records[identity]

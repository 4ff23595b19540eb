"""Loads, unloads and restarts as things to ask about: an id, progress, a result. Bounded
history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from cortex_core.errors import CortexError, InternalError, NotFound, ShuttingDown
from cortex_core.fleet.discovery import ModelState, Operation
from neuron import logs

__all__ = ["OperationKind", "OperationRecord", "Operations"]

OperationKind = Literal["load", "unload", "restart"]

_log = logs.get(__name__)
_MOST_KEPT = 256


class OperationRecord:
    """One operation. `progress` is asked while it runs; `task` carries it out."""

    def __init__(
        self,
        identity: str,
        kind: OperationKind,
        model: str,
        device: str,
        progress: Callable[[], float],
    ) -> None:
        self.id = identity
        self.kind: OperationKind = kind
        self.model = model
        self.device = device
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
        phase, progress = "done", 1.0
        if self.is_running:
            phase, progress = "running", self._progress()
        elif self._error is not None:
            phase, progress = "failed", 0.0
        return Operation(
            self.id,
            self.kind,
            self.model,
            phase,
            progress,
            self._result,
            self._error.fault if self._error else None,
            self.device,
        )


class Operations:
    """Every running operation and the last ones that have ended."""

    def __init__(self, boot: str) -> None:
        self._prefix = boot[:8]
        self._count = 0
        self._records: dict[str, OperationRecord] = {}

    def begin(
        self,
        kind: OperationKind,
        model: str = "",
        progress: Callable[[], float] = lambda: 0.0,
        *,
        device: str = "",
    ) -> OperationRecord:
        self._forget()
        self._count += 1
        identity = f"{kind}-{self._prefix}-{self._count}"
        record = OperationRecord(identity, kind, model, device, progress)
        self._records[record.id] = record
        return record

    def carry_out(
        self,
        record: OperationRecord,
        work: Coroutine[Any, Any, ModelState | None],
        changed: Callable[[bool], None],
    ) -> None:
        """Run `work`, and let the record end as it does; `changed` is told then."""
        what = record.model or record.device

        async def run() -> None:
            try:
                record.succeed(await work)
                _log.info(f"{record.kind} done", what=what, operation=record.id)
            except CortexError as error:
                record.fail(error)
                _log.error(f"{record.kind} failed", what=what, cause=error.message)
            except asyncio.CancelledError:
                record.fail(ShuttingDown("the neuron is shutting down"))
                raise
            except Exception:
                record.fail(InternalError(f"the {record.kind} of {what!r} failed"))
                _log.exception(f"{record.kind} failed", what=what)
            finally:
                changed(True)

        record.task = asyncio.create_task(run(), name=record.id)

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

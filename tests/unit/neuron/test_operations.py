"""How operations end, and which restarts begin at all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from cortex_core.errors import (
    Conflict,
    CortexError,
    InternalError,
    NoCapacity,
    NotFound,
    ShuttingDown,
)
from cortex_core.fleet.discovery import DeviceState, ModelState, WorkerPhase, WorkerState
from neuron.models.inventory import Inventory
from neuron.models.operations import OperationRecord, Operations
from neuron.models.restarting import Restarting

READY = ModelState("m", "cpu", "ready", "/m")


class Begun:
    """An operation under way, and whether anybody was told of its end."""

    def __init__(self, work: Coroutine[Any, Any, ModelState | None]) -> None:
        self.changes: list[bool] = []
        operations = Operations("bootbootboot")
        self.record = operations.begin("load", "m")
        operations.carry_out(self.record, work, self.changes.append)

    async def error(self) -> CortexError:
        with pytest.raises(CortexError) as caught:
            await self.record.ended()
        return caught.value


async def test_an_operation_ends_with_its_result():
    async def work() -> ModelState:
        return READY

    begun = Begun(work())
    assert begun.record.report().phase == "running"
    await begun.record.ended()
    report = begun.record.report()
    assert (report.phase, report.progress, report.result) == ("done", 1.0, READY)
    await asyncio.sleep(0)
    assert begun.changes == [True]


@pytest.mark.parametrize(
    ("raised", "kind"), [(NoCapacity("full"), NoCapacity), (KeyError("a bug"), InternalError)]
)
async def test_an_operation_ends_with_the_error_of_its_work(
    raised: Exception, kind: type[CortexError]
):
    async def work() -> None:
        raise raised

    begun = Begun(work())
    error = await begun.error()
    assert type(error) is kind
    assert "a bug" not in error.message
    report = begun.record.report()
    assert (report.phase, report.fault) == ("failed", error.fault)


async def test_an_operation_that_is_cut_off_says_that_the_neuron_ends():
    begun = Begun(asyncio.Event().wait())  # pyright: ignore[reportArgumentType]
    await asyncio.sleep(0)
    assert begun.record.task is not None
    begun.record.task.cancel()
    assert isinstance(await begun.error(), ShuttingDown)


class Fleet:
    """Devices whose workers restart when they are told to, and not before."""

    def __init__(self, phase: WorkerPhase = "ready", cause: str | None = None) -> None:
        self.release = asyncio.Event()
        self.drains: list[float] = []
        worker = WorkerState(phase, 1, 0, cause)
        self.inventory = Inventory("n")
        for name in ("cpu:0", "cpu:1"):
            device = DeviceState(name, "cpu", "test", worker)
            stand_in: Any = SimpleNamespace(device=device, worker=worker, restart=self._restart)
            self.inventory.supervisors[name] = stand_in
        self.restarting = Restarting(self.inventory, Operations("boot"), lambda urgent: None)

    async def _restart(self, drain_s: float) -> None:
        self.drains.append(drain_s)
        await self.release.wait()

    def restart(self, device: str = "cpu:0") -> OperationRecord:
        return self.restarting.restart(device, 30)


async def test_a_restart_is_an_operation_on_a_device():
    fleet = Fleet()
    record = fleet.restart()
    assert record.report().device == "cpu:0"
    assert record.is_running
    fleet.release.set()
    await record.ended()
    assert fleet.drains == [30]


async def test_who_wants_the_same_restart_joins_it_and_another_device_has_its_own():
    fleet = Fleet()
    first = fleet.restart()
    assert fleet.restart() is first
    other = fleet.restart("cpu:1")
    assert other is not first
    fleet.release.set()
    await asyncio.gather(first.ended(), other.ended())
    assert fleet.restart() is not first


async def test_an_unknown_device_is_named_with_the_known_ones():
    with pytest.raises(NotFound, match="no device 'cuda:7' here; devices: cpu:0, cpu:1"):
        Fleet().restart("cuda:7")


async def test_a_worker_that_is_not_up_is_not_restarted():
    with pytest.raises(Conflict, match="the worker of cpu:0 is failed: 4 crashes"):
        Fleet("failed", "4 crashes").restart()
    with pytest.raises(Conflict, match=r"is starting$"):
        Fleet("starting").restart()


async def test_a_neuron_that_is_shutting_down_restarts_nothing():
    fleet = Fleet()
    fleet.inventory.is_stopping = True
    with pytest.raises(ShuttingDown):
        fleet.restart()

"""What the registry does while a load is held up, refused or lost. The worker is scripted, because
the real one cannot be told when to answer; everything else is in tests/e2e/neuron."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cortex_core.config.neuron import EngineSection
from cortex_core.errors import (
    Conflict,
    ModelLoading,
    NoCapacity,
    NotFound,
    PreflightFailed,
)
from cortex_core.fleet.discovery import DeviceState, ModelState, NodeState, WorkerState
from cortex_core.wire import ipc
from neuron.models.operations import OperationRecord, Operations
from neuron.models.registry import Registry, Wanted
from neuron.models.resolve import Resolver
from neuron.streams import RequestStream
from neuron.supervisor import Supervisor
from neuron.worker_policy import Limits
from tests.unit.neuron import scripted_worker
from tests.unit.neuron.gguf_bytes import gguf

SCRIPT = str(Path(scripted_worker.__file__))
ANYHOW = Wanted()


class Node:
    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry = registry
        self.folder = folder

    async def load(self, model: str, wanted: Wanted = ANYHOW) -> ModelState | None:
        async with asyncio.timeout(20):
            record = await self.registry.load(model, wanted)
            await record.ended()
            return record.report().result

    async def unload(self, model: str, force: bool = False) -> None:
        async with asyncio.timeout(20):
            await self.registry.unload(model, force).ended()

    def generate(self, prompt: str = "hi", model: str = "a.gguf") -> RequestStream:
        return self.registry.open(ipc.Generate(0, model, prompt, ipc.Sampling()))

    def phase(self, model: str = "a.gguf") -> str | None:
        return next((m.phase for m in self.registry.state().models if m.id == model), None)

    async def until(self, is_true: Callable[[NodeState], bool]) -> NodeState:
        async with asyncio.timeout(20):
            state = await self.registry.feed.beyond(0)
            while state is not None and not is_true(state):
                state = await self.registry.feed.beyond(state.version)
            assert state is not None
            return state

    def release(self) -> None:
        """Let the loads of slow workers go on."""
        (self.folder / "go").touch()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a", "b", "refused", "poison"):
        (tmp_path / f"{name}.gguf").write_bytes(gguf())
    (tmp_path / "bad.gguf").write_bytes(gguf()[:-1])
    monkeypatch.setenv("SLOW_UNTIL", str(tmp_path / "go"))
    return tmp_path


@asynccontextmanager
async def node(
    folder: Path, habits: str = "", devices: int = 1, max_waiting: int = 4
) -> AsyncIterator[Node]:
    engine = EngineSection(parallel=2, max_waiting=max_waiting)
    registry = Registry("n", engine, Resolver([str(folder)]))
    limits = Limits(backoff_first_s=0.01)
    supervisors = {}
    for n in range(devices):
        device = DeviceState(f"cpu:{n}", "cpu", "test", WorkerState("starting"))
        command = [sys.executable, SCRIPT, habits]
        supervisors[device.id] = Supervisor(device, limits, registry.changed, command)
    registry.attach(supervisors)
    for supervisor in supervisors.values():
        supervisor.start()
    try:
        yield Node(registry, folder)
    finally:
        await registry.close()
        await asyncio.gather(*(s.stop() for s in supervisors.values()))


async def test_many_who_want_the_same_model_share_one_load(folder: Path):
    async with node(folder, "slow") as n:
        records = await asyncio.gather(*(n.registry.load("a.gguf", ANYHOW) for _ in range(8)))
        assert len({record.id for record in records}) == 1
        assert records[0].report().phase == "running"
        n.release()
        await records[0].ended()


@pytest.mark.parametrize("wanted", [Wanted(context=64), Wanted(parallel=3), Wanted(device="cpu:1")])
async def test_other_parameters_are_a_conflict(folder: Path, wanted: Wanted):
    async with node(folder, "slow", devices=2) as n:
        record = await n.registry.load("a.gguf", Wanted(device="cpu:0", parallel=2))
        with pytest.raises(Conflict, match="being loaded"):
            await n.registry.load("a.gguf", wanted)
        n.release()
        await record.ended()
        with pytest.raises(Conflict, match="unload it first"):
            await n.registry.load("a.gguf", wanted)


async def test_a_conflict_is_with_what_the_model_really_has(folder: Path):
    async with node(folder) as n:
        ready = await n.load("a.gguf")
        assert ready is not None
        context = ready.context
        again = await n.registry.load("a.gguf", Wanted(context=context))
        assert again.report().phase == "done"
        with pytest.raises(Conflict, match=f"is loaded with {context}, not 64"):
            await n.registry.load("a.gguf", Wanted(context=64))


async def test_progress_is_shown_while_loading(folder: Path):
    async with node(folder, "slow") as n:
        record = await n.registry.load("a.gguf", ANYHOW)
        assert n.phase() == "loading"
        assert record.report().progress == 0.0
        with pytest.raises(ModelLoading, match="loading"):
            n.generate()
        n.release()
        await record.ended()
        assert record.report().progress == 1.0


async def test_a_load_the_worker_refuses_leaves_a_failed_model_that_can_be_tried_again(
    folder: Path,
):
    (folder / "sub").mkdir()
    async with node(folder) as n:
        os.rename(folder / "refused.gguf", folder / "refused")
        with pytest.raises(PreflightFailed, match="no such tensor"):
            await n.load("refused")
        assert n.phase("refused") == "failed"
        with pytest.raises(NoCapacity, match="no such tensor"):
            n.generate(model="refused")
        with pytest.raises(PreflightFailed, match="no such tensor"):
            await n.load("refused")
        await n.unload("refused")
        assert n.phase("refused") is None


async def test_operations_on_one_model_run_in_the_order_they_came(folder: Path):
    async with node(folder, "slow") as n:
        load = await n.registry.load("a.gguf", ANYHOW)
        unload = n.registry.unload("a.gguf", force=False)
        again = await n.registry.load("a.gguf", Wanted(parallel=1))
        assert len({load.id, unload.id, again.id}) == 3
        n.release()
        for record in (load, unload, again):
            await asyncio.wait_for(record.ended(), 20)
        assert n.phase() == "ready"


async def test_a_crash_is_seen_as_recovering_and_a_load_then_waits_for_it(folder: Path):
    async with node(folder, "slow") as n:
        n.release()
        await n.load("a.gguf")
        (folder / "go").unlink()
        pid = n.registry.state().devices[0].worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        state = await n.until(lambda s: s.models[0].phase == "recovering")
        assert state.models[0].fault is not None
        assert "SIGKILL" in state.models[0].fault.message
        with pytest.raises(ModelLoading, match="recovering"):
            n.generate()
        record = await n.registry.load("a.gguf", ANYHOW)
        assert record.is_running
        n.release()
        await asyncio.wait_for(record.ended(), 20)
        assert n.phase() == "ready"
        assert n.registry.state().models[0].fault is None


async def test_a_default_model_that_cannot_begin_is_shown_as_failed(folder: Path):
    async with node(folder) as n:
        error = PreflightFailed("bad.gguf: truncated", kind="gguf_corrupt")
        n.registry.show_failed("bad.gguf", Wanted(device="nowhere"), error)
        (state,) = n.registry.state().models
        assert (state.phase, state.fault) == ("failed", error.fault)
        await n.unload("bad.gguf")
        assert n.registry.state().models == []


async def test_operations_are_kept_up_to_a_bound_and_running_ones_always():
    operations = Operations("boot")
    running = operations.begin("load", "a")
    ended: list[OperationRecord] = []
    for _ in range(300):
        record = operations.begin("unload", "b")
        record.succeed(None)
        ended.append(record)
    assert operations.find(running.id) is running
    assert operations.find(ended[-1].id) is ended[-1]
    with pytest.raises(NotFound):
        operations.find(ended[0].id)

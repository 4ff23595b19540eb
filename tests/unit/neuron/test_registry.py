"""What the registry does while a load is held up, refused or lost. The worker is scripted, because
the real one cannot be told when to answer; everything else is in tests/e2e/neuron."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cortex_core.config.neuron import HubSource
from cortex_core.errors import (
    Conflict,
    InvalidRequest,
    ModelLoading,
    NoCapacity,
    NotFound,
    PreflightFailed,
    UpstreamFailed,
)
from cortex_core.fleet.discovery import DeviceState, WorkerState
from neuron.models import loading
from neuron.models.hub import Hub
from neuron.models.operations import OperationRecord, Operations
from neuron.models.registry import Wanted
from tests.hub_server import serve_hub
from tests.unit.neuron.gguf_bytes import gguf, tensor
from tests.unit.neuron.scripted_node import ANYHOW, fill, node


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fill(tmp_path)
    monkeypatch.setenv("SLOW_UNTIL", str(tmp_path / "go"))
    return tmp_path


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
    async with node(folder) as n:
        with pytest.raises(PreflightFailed, match="no such tensor"):
            await n.load("refused")
        assert n.phase("refused") == "failed"
        with pytest.raises(NoCapacity, match="no such tensor"):
            n.generate(model="refused")
        with pytest.raises(PreflightFailed, match="no such tensor"):
            await n.load("refused")
        await n.unload("refused")
        assert n.phase("refused") is None


async def test_a_worker_killed_in_the_middle_of_a_load_fails_it_and_a_retry_works(folder: Path):
    async with node(folder, "slow") as n:
        record = await n.registry.load("a.gguf", ANYHOW)
        await n.until(lambda s: s.devices[0].worker.phase == "ready")
        pid = n.registry.state().devices[0].worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UpstreamFailed, match="SIGKILL"):
            await asyncio.wait_for(record.ended(), 20)
        assert n.phase() == "failed"
        n.release()
        assert await n.load("a.gguf")


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


MIB = 2**20


def readings(free: int, devices: int = 1) -> list[DeviceState]:
    """The CPUs of a host with so much memory free."""
    return [
        DeviceState(
            f"cpu:{n}",
            "cpu",
            "test",
            WorkerState("ready"),
            memory_free_bytes=free,
            memory_total_bytes=1000 * MIB,
        )
        for n in range(devices)
    ]


@pytest.fixture
def large(folder: Path) -> Path:
    """Two models with 10 MiB of weights each."""
    rows = 10 * MIB // 4 // 1024
    for name in ("x", "y"):
        weights = tensor("token_embd.weight", [1024, rows], 0, 0)
        (folder / f"{name}.gguf").write_bytes(gguf(tensors=[weights], data_bytes=10 * MIB))
    return folder


async def test_a_load_that_cannot_fit_is_refused_and_leaves_no_trace(large: Path):
    async with node(large) as n:
        n.registry.read(readings(5 * MIB))
        with pytest.raises(PreflightFailed, match="has 5 MiB free") as caught:
            await n.registry.load("x.gguf", ANYHOW)
        assert caught.value.code == "insufficient_memory"
        assert n.phase("x.gguf") is None
        n.registry.read(readings(100 * MIB))
        assert await n.load("x.gguf")


async def test_a_load_under_way_has_its_memory_promised(large: Path):
    async with node(large, "slow") as n:
        n.registry.read(readings(200 * MIB))
        estimate = await n.registry.estimate("y.gguf", ANYHOW)
        n.registry.read(readings(estimate.total_bytes + MIB))
        record = await n.registry.load("x.gguf", ANYHOW)
        with pytest.raises(PreflightFailed):
            await n.registry.load("y.gguf", ANYHOW)
        n.release()
        await record.ended()


async def test_memory_taken_since_the_last_reading_is_not_free(large: Path):
    async with node(large) as n:
        n.registry.read(readings(200 * MIB))
        estimate = await n.registry.estimate("y.gguf", ANYHOW)
        n.registry.read(readings(estimate.total_bytes + MIB))
        await n.load("x.gguf")
        with pytest.raises(PreflightFailed):
            await n.registry.load("y.gguf", ANYHOW)
        n.registry.read(readings(estimate.total_bytes + 11 * MIB))
        assert await n.load("y.gguf")


@pytest.mark.parametrize(("mmap", "taken_mib"), [(True, 10), (False, 0), (None, 0)])
async def test_mapped_weights_in_use_are_not_free_though_the_system_says_so(
    large: Path, mmap: bool | None, taken_mib: int
):
    async with node(large) as n:
        n.registry.read(readings(200 * MIB))
        before = await n.registry.estimate("y.gguf", ANYHOW)
        await n.load("x.gguf", Wanted(mmap=mmap))
        n.registry.read(readings(200 * MIB))
        after = await n.registry.estimate("y.gguf", ANYHOW)
        free = [estimate.devices[-1].free_bytes for estimate in (before, after)]
        assert free == [200 * MIB, (200 - taken_mib) * MIB]


async def test_an_estimate_touches_nothing(large: Path):
    async with node(large) as n:
        n.registry.read(readings(200 * MIB))
        estimate = await n.registry.estimate("x.gguf", Wanted(context=512, parallel=2))
        assert (estimate.device, estimate.context, estimate.parallel) == ("cpu:0", 512, 2)
        assert estimate.fits
        assert not n.registry.state().models


async def test_an_estimate_for_a_device_that_is_not_there_names_those_that_are(large: Path):
    async with node(large) as n:
        with pytest.raises(InvalidRequest, match="devices: cpu:0") as caught:
            await n.registry.estimate("x.gguf", Wanted(device="cuda:9"))
        assert caught.value.param == "device"


async def test_a_hub_that_does_not_answer_holds_nobody_up_for_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "_INSPECT_S", 0.2)
    with serve_hub() as server:
        server.is_silent = True
        hub = Hub(HubSource("h", server.url, cache_dir=str(folder)))
        async with node(folder, hubs={"h": hub}) as n:
            with pytest.raises(UpstreamFailed, match="org/a: not found out about within"):
                await n.load("org/a")
            assert n.phase("org/a") is None


async def test_other_options_are_a_conflict_by_name(folder: Path):
    async with node(folder) as n:
        await n.load("a.gguf", Wanted(batch=512, mlock=True))
        assert (await n.registry.load("a.gguf", Wanted(mlock=True))).report().phase == "done"
        assert (await n.registry.load("a.gguf", Wanted(gpu_layers=-1))).report().phase == "done"
        with pytest.raises(Conflict, match="with 512, not 1024") as caught:
            await n.registry.load("a.gguf", Wanted(batch=1024))
        assert caught.value.param == "batch"


async def test_a_context_left_open_is_whatever_it_came_to(folder: Path):
    async with node(folder) as n:
        await n.load("a.gguf", Wanted(context=0))
        assert (await n.registry.load("a.gguf", Wanted(context=0))).report().phase == "done"

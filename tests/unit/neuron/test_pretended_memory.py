"""CPU devices that pretend to have memory of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex_core.errors import PreflightFailed
from cortex_core.fleet.discovery import DeviceState, WorkerState
from neuron.models.registry import Wanted
from tests.unit.neuron.gguf_bytes import gguf, tensor
from tests.unit.neuron.scripted_node import ANYHOW, Node, fill, node

MIB = 2**20
MEASURED = 20  # what the scripted worker says that a model takes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three models with 10 MiB of weights each."""
    fill(tmp_path)
    rows = 10 * MIB // 4 // 1024
    for name in "xyz":
        weights = tensor("token_embd.weight", [1024, rows], 0, 0)
        (tmp_path / f"{name}.gguf").write_bytes(gguf(tensors=[weights], data_bytes=10 * MIB))
    monkeypatch.setenv("SLOW_UNTIL", str(tmp_path / "go"))
    return tmp_path


def memory(n: Node) -> list[tuple[int | None, int | None]]:
    devices = n.registry.state().devices
    return [(device.memory_free_bytes, device.memory_total_bytes) for device in devices]


async def test_each_device_has_what_it_pretends_less_what_its_models_take(folder: Path):
    async with node(folder, "slow", devices=2, cpu_memory_bytes=100 * MIB) as n:
        assert memory(n) == [(100 * MIB, 100 * MIB)] * 2
        wanted = Wanted(device="cpu:1")
        need = (await n.registry.estimate("x.gguf", wanted)).total_bytes
        record = await n.registry.load("x.gguf", wanted)
        assert memory(n) == [(100 * MIB, 100 * MIB), (100 * MIB - need, 100 * MIB)]
        n.release()
        await record.ended()
        assert memory(n)[1] == (100 * MIB - MEASURED, 100 * MIB)
        await n.unload("x.gguf")
        assert memory(n)[1] == (100 * MIB, 100 * MIB)


async def test_what_is_more_than_it_pretends_is_refused(folder: Path):
    async with node(folder, cpu_memory_bytes=5 * MIB) as n:
        with pytest.raises(PreflightFailed, match="has 5 MiB free") as caught:
            await n.load("x.gguf")
        assert caught.value.code == "insufficient_memory"


async def test_a_model_goes_where_there_is_pretended_room_for_it(folder: Path):
    async with node(folder, "slow", devices=2, cpu_memory_bytes=19 * MIB) as n:
        records = [await n.registry.load(f"{name}.gguf", ANYHOW) for name in "xy"]
        assert {m.device for m in n.registry.state().models} == {"cpu:0", "cpu:1"}
        with pytest.raises(PreflightFailed):
            await n.registry.load("z.gguf", ANYHOW)
        n.release()
        for record in records:
            await record.ended()


async def test_a_failed_load_takes_nothing(folder: Path):
    async with node(folder, cpu_memory_bytes=100 * MIB) as n:
        with pytest.raises(PreflightFailed, match="no such tensor"):
            await n.load("refused")
        assert memory(n) == [(100 * MIB, 100 * MIB)]


async def test_what_the_host_does_not_have_cannot_be_had_by_pretending(folder: Path):
    async with node(folder, cpu_memory_bytes=1000 * MIB) as n:
        reading = DeviceState(
            "cpu:0", "cpu", "test", WorkerState("ready"), memory_free_bytes=5 * MIB
        )
        n.registry.read([reading])
        with pytest.raises(PreflightFailed, match="has 5 MiB free"):
            await n.load("x.gguf")

"""Orders that say what they were decided upon, and an operator's drain."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cortex_core.config.loading import SamplingDefaults
from cortex_core.errors import (
    Conflict,
    InvalidRequest,
    NoCapacity,
    NodeUnavailable,
    PreflightFailed,
)
from cortex_core.wire import ipc
from neuron.models.options import wanted_of
from neuron.models.registry import Wanted
from neuron.routes.models import LoadRequest
from tests.unit.neuron.scripted_node import ANYHOW, Node, fill, node


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fill(tmp_path)
    monkeypatch.setenv("SLOW_UNTIL", str(tmp_path / "go"))
    return tmp_path


async def test_each_change_of_what_has_a_place_is_counted(folder: Path):
    async with node(folder, "slow") as n:
        seen = [n.holdings]
        record = await n.registry.load("a.gguf", ANYHOW)
        seen.append(n.holdings)
        n.release()
        await record.ended()
        seen.append(n.holdings)
        unload = n.registry.unload("a.gguf", force=False)
        seen.append(n.holdings)
        await unload.ended()
        seen.append(n.holdings)
        assert seen == [0, 1, 2, 3, 4]


async def test_requests_and_joined_loads_change_no_holdings(folder: Path):
    async with node(folder) as n:
        await n.load("a.gguf")
        before = n.holdings
        await n.load("a.gguf")
        async with n.generate():
            assert n.holdings == before


async def test_a_load_that_fails_is_counted_when_it_begins_and_when_it_ends(folder: Path):
    async with node(folder) as n:
        with pytest.raises(PreflightFailed):
            await n.load("refused")
        assert n.holdings == 2


async def test_a_load_decided_upon_other_holdings_is_a_conflict_with_both_numbers(folder: Path):
    async with node(folder) as n:
        await n.load("a.gguf", if_holdings=0)
        with pytest.raises(Conflict, match=r"if_holdings: 0 is not .* \(2\)") as caught:
            await n.load("b.gguf", if_holdings=0)
        assert caught.value.param == "if_holdings"
        assert n.phase("b.gguf") is None
        assert await n.load("b.gguf", if_holdings=2)


async def test_of_two_loads_decided_upon_the_same_holdings_one_is_a_conflict(folder: Path):
    async with node(folder) as n:
        outcomes = await asyncio.gather(
            *(n.registry.load(f"{name}.gguf", ANYHOW, if_holdings=0) for name in "ab"),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1


async def test_an_unload_decided_upon_other_holdings_is_a_conflict(folder: Path):
    async with node(folder) as n:
        await n.load("a.gguf")
        with pytest.raises(Conflict, match="if_holdings"):
            n.registry.unload("a.gguf", force=False, if_holdings=1)
        await n.registry.unload("a.gguf", force=False, if_holdings=2).ended()


async def test_an_unload_of_what_is_only_idle_is_a_conflict_while_anything_runs(folder: Path):
    async with node(folder) as n:
        await n.load("a.gguf")
        async with n.generate("endless") as stream:
            await stream.read()
            with pytest.raises(Conflict, match="1 requests running and 0 waiting") as caught:
                n.registry.unload("a.gguf", force=False, if_idle=True)
            assert caught.value.param == "if_idle"
            assert n.phase() == "ready"
        await n.registry.unload("a.gguf", force=False, if_idle=True).ended()
        assert n.phase() is None


async def test_an_idle_model_admits_nothing_from_the_moment_it_is_to_be_unloaded(folder: Path):
    async with node(folder) as n:
        await n.load("a.gguf")
        record = n.registry.unload("a.gguf", force=False, if_idle=True)
        with pytest.raises(NoCapacity, match="being unloaded"):
            n.generate()
        await record.ended()


async def test_a_model_on_its_way_is_not_idle(folder: Path):
    async with node(folder, "slow") as n:
        record = await n.registry.load("a.gguf", ANYHOW)
        with pytest.raises(Conflict, match="is being loaded"):
            n.registry.unload("a.gguf", force=False, if_idle=True)
        n.release()
        await record.ended()


async def test_a_drained_node_takes_nothing_new_and_lets_what_runs_go_on(folder: Path):
    async with node(folder) as n:
        await n.load("a.gguf")
        async with n.generate() as stream:
            n.registry.set_drained(True)
            assert n.registry.state().draining
            with pytest.raises(NodeUnavailable, match="is drained"):
                n.generate()
            with pytest.raises(NodeUnavailable, match="is drained"):
                await n.load("b.gguf")
            assert isinstance((await stream.read())[0], ipc.Started)
        await n.unload("a.gguf")
        n.registry.set_drained(False)
        assert not n.registry.state().draining
        assert await n.load("b.gguf")


async def sampled(n: Node, sampling: SamplingDefaults | None) -> dict[str, float]:
    await n.load("a.gguf", Wanted(sampling=sampling))
    return n.registry.sampling_defaults("a.gguf")


async def test_the_newest_load_that_speaks_of_sampling_has_the_last_word(folder: Path):
    async with node(folder) as n:
        assert n.registry.sampling_defaults("a.gguf") == {}
        warm = {"temperature": 0.6, "top_k": 20}
        assert await sampled(n, SamplingDefaults(temperature=0.6, top_k=20)) == warm
        assert await sampled(n, None) == warm
        assert await sampled(n, SamplingDefaults(temperature=0.1)) == {"temperature": 0.1}
        await n.unload("a.gguf")
        assert await sampled(n, None) == {}


def test_sampling_out_of_range_is_refused_by_name():
    with pytest.raises(InvalidRequest) as caught:
        wanted_of(LoadRequest(model="a", sampling=SamplingDefaults(min_p=2)))
    assert caught.value.param == "sampling.min_p"

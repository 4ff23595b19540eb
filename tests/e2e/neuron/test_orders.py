"""What whoever governs a fleet tells a neuron over HTTP: orders with conditions, drains, and what a
device pretends to have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from cortex_core.fleet.discovery import NodeState
from tests.e2e.neuron.client import QUESTION, TINY, Client, connect, endless
from tests.processes import Daemon, start_neuron

MIB = 1 << 20
CONFIG = "[devices]\ncpu_workers = 2\nmemory_mb = 64\n[engine]\ncontext = 512\nparallel = 2\n"


@pytest.fixture(scope="module")
def neuron() -> Iterator[Daemon]:
    with start_neuron(config=CONFIG, models=()) as daemon:
        yield daemon


@pytest.fixture
async def client(neuron: Daemon) -> AsyncIterator[Client]:
    """Of a neuron with `cortex/tiny` on its second device."""
    async with connect(neuron.url) as client:
        await client.until(lambda s: all(d.worker.phase == "ready" for d in s.devices))
        loaded = await client.post("/models/load", {"model": TINY, "device": "cpu:1", "wait": True})
        assert loaded.status == 200
        yield client
        await client.post("/undrain")
        await client.post("/models/unload", {"model": TINY, "force": True, "wait": True})


async def state(client: Client) -> NodeState:
    return await client.until(lambda s: True)


async def test_orders_decided_upon_what_is_past_are_conflicts(client: Client):
    holdings = (await client.get("/discovery")).json["holdings"]
    for path in ("/models/load", "/models/unload"):
        refused = await client.post(path, {"model": TINY, "if_holdings": holdings - 1})
        assert (refused.status, refused.error["code"]) == (409, "conflict")
        assert refused.error["param"] == "if_holdings"
        assert f"({holdings})" in refused.error["message"]
    unload = {"model": TINY, "if_holdings": holdings, "wait": True}
    assert (await client.post("/models/unload", unload)).status == 200


async def test_a_busy_model_is_not_unloaded_by_who_wants_an_idle_one(client: Client):
    unload = {"model": TINY, "if_idle": True, "wait": True}
    async with client.stream(endless()) as stream:
        await stream.until_text()
        refused = await client.post("/models/unload", unload)
        assert (refused.status, refused.error["param"]) == (409, "if_idle")
        assert "1 requests running" in refused.error["message"]
        await stream.until_text(len(stream.text) + 1)
        assert stream.error is None
    await client.until(lambda s: s.models[0].running == 0)
    assert (await client.post("/models/unload", unload)).status == 200


async def test_a_drained_neuron_finishes_what_runs_and_takes_nothing_until_undrained(
    client: Client,
):
    async with client.stream(endless(max_tokens=200)) as stream:
        await stream.until_text()
        drained = await client.post("/drain")
        assert drained.json == {"draining": True, "in_flight": 1}
        refused = await client.chat(QUESTION)
        assert (refused.status, refused.error["code"]) == (503, "node_unavailable")
        assert "drained" in refused.error["message"]
        load = await client.post("/models/load", {"model": "/a.gguf"})
        assert (load.status, load.error["code"]) == (503, "node_unavailable")
        health = await client.get("/health")
        assert (health.status, health.json["status"]) == (503, "draining")
        assert (await state(client)).draining
        await stream.to_the_end()
        assert stream.is_done
    assert (await client.post("/undrain", {})).json["draining"] is False
    assert (await client.chat(QUESTION)).status == 200
    assert (await client.get("/health")).status == 200


async def test_a_drain_takes_no_parameters(client: Client):
    refused = await client.post("/drain", {"forever": True})
    assert (refused.status, refused.error["param"]) == (400, "forever")


async def test_a_device_says_what_it_pretends_to_have_less_what_its_models_take(client: Client):
    now = await state(client)
    taken = now.models[0].memory_bytes
    assert 0 < taken < 64 * MIB
    assert [(d.memory_free_bytes, d.memory_total_bytes) for d in now.devices] == [
        (64 * MIB, 64 * MIB),
        (64 * MIB - taken, 64 * MIB),
    ]


async def test_what_a_device_does_not_pretend_to_have_is_refused(client: Client):
    asked = {"model": TINY, "device": "cpu:0", "parallel": 256, "context": 2048}
    estimate = (await client.post("/models/estimate", asked)).json
    assert not estimate["fits"]
    assert estimate["devices"][0]["free_bytes"] == 64 * MIB


async def test_a_loads_sampling_stands_where_a_request_says_nothing(client: Client):
    async def answers(**more: object) -> set[str]:
        body = {"model": TINY, "messages": [{"role": "user", "content": "Tell me something"}]}
        return {
            (await client.post("/v1/chat/completions", {**body, "seed": seed, **more})).text
            for seed in range(4)
        }

    hot = {"temperature": 100.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for sampling, is_one in ((hot, False), ({"temperature": 0.0}, True)):
        loaded = await client.post(
            "/models/load", {"model": TINY, "sampling": sampling, "wait": True}
        )
        assert loaded.status == 200
        assert (len(await answers(max_tokens=16)) == 1) is is_one
    assert len(await answers(max_tokens=16, **hot)) > 1


async def test_sampling_that_no_request_may_have_is_refused_by_name(client: Client):
    for sampling, param in (({"top_p": 2}, "sampling.top_p"), ({"topp": 1}, "sampling")):
        refused = await client.post("/models/load", {"model": TINY, "sampling": sampling})
        assert (refused.status, refused.error["param"]) == (400, param)

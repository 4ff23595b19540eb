"""After a known set of requests the metrics say exactly that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fleet.conftest import Rig
from tests.fleet.scripted_neuron import Call, chunks_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


def delta(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What has grown, without the process's own metrics and the times."""
    return {
        name: value - before.get(name, 0.0)
        for name, value in after.items()
        if name.startswith("cortex_")
        and value != before.get(name, 0.0)
        and not any(part in name for part in ("_bucket", "_sum", "_created"))
    }


async def grown(rig: Rig, *chats: Any) -> dict[str, float]:
    before = await rig.metrics()
    for chat in chats:
        await chat
    return delta(before, await rig.metrics())


async def test_each_request_is_counted_once_with_its_tokens(rig: Rig) -> None:
    assert await grown(rig, rig.chat("only/a"), rig.chat("only/a")) == {
        'cortex_requests_total{code="",model="only/a",node="a",outcome="ok",stream="false"}': 2,
        'cortex_tokens_total{kind="prompt",model="only/a",node="a"}': 20,
        'cortex_tokens_total{kind="cached",model="only/a",node="a"}': 12,
        'cortex_tokens_total{kind="completion",model="only/a",node="a"}': 8,
        'cortex_tokens_total{kind="reasoning",model="only/a",node="a"}': 2,
        'cortex_request_duration_seconds_count{model="only/a",node="a",stream="false"}': 2,
    }


async def test_a_stream_counts_its_time_to_first_byte(rig: Rig) -> None:
    rig.a.script = lambda call: call.stream(*chunks_of("x", usage=True))
    found = await grown(rig, rig.chat("only/a", stream=True))
    assert found['cortex_ttft_seconds_count{model="only/a",node="a"}'] == 1
    assert found['cortex_tokens_total{kind="completion",model="only/a",node="a"}'] == 4


async def test_refusals_count_by_code_and_never_by_a_clients_words(rig: Rig) -> None:
    chats = [rig.chat(f"made-up-{n}") for n in range(3)]
    found = await grown(rig, *chats, rig.ask("POST", "/v1/chat/completions", b"{"))
    labels = 'model="unknown",node="",outcome="rejected",stream="false"'
    assert found == {
        f'cortex_requests_total{{code="model_not_found",{labels}}}': 3,
        f'cortex_requests_total{{code="invalid_json",{labels}}}': 1,
        'cortex_request_duration_seconds_count{model="unknown",node="",stream="false"}': 4,
    }


async def test_a_broken_stream_counts_as_failed_upstream(rig: Rig) -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(chunks_of("x")[0])
        call.reset()

    rig.a.script = script
    found = await grown(rig, rig.chat("only/a", stream=True))
    labels = 'model="only/a",node="a",outcome="upstream_failed",stream="true"'
    assert found[f'cortex_requests_total{{code="upstream_failed",{labels}}}'] == 1


async def test_in_flight_and_node_up_are_read_when_asked(rig: Rig) -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.answer({})

    rig.a.script = script
    chat = asyncio.create_task(rig.chat("only/a"))
    await rig.until_in_flight("a", 1)
    metrics = await rig.metrics()
    assert metrics['cortex_in_flight_requests{node="a"}'] == 1
    assert metrics['cortex_node_up{node="a"}'] == 1
    release.set()
    await chat
    await rig.b.disappear()
    await rig.until_reachable("b", False)
    metrics = await rig.metrics()
    assert metrics['cortex_in_flight_requests{node="a"}'] == 0
    assert metrics['cortex_node_up{node="b"}'] == 0


async def test_the_metrics_listener_answers_health_and_little_else(rig: Rig) -> None:
    for path, status in (("/health", 200), ("/metrics", 200), ("/v1/models", 404)):
        async with rig.client.get(rig.metrics_url + path) as response:
            assert response.status == status
    assert (await rig.ask("GET", "/metrics")).status == 404


async def test_the_gateway_stays_small(rig: Rig) -> None:
    for _ in range(10):
        await asyncio.gather(*(rig.chat(stream=bool(n % 2)) for n in range(50)))
    resident = (await rig.metrics())["process_resident_memory_bytes"] / 1e6
    print(f"resident memory after 500 requests: {resident:.1f} MB")
    assert resident <= 90

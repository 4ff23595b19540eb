"""More requests than the engine takes: who waits hears that somebody is there, who cannot wait is
told when to come back; through the gateway, as clients see it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.e2e.client import CHAT, TINY, Answer, ask, eventually, fetch, open_stream, user
from tests.e2e.conftest import Stack, gateway_config
from tests.processes import start_gateway, start_neuron

CONFIG = "[engine]\nparallel = 1\nmax_waiting = 2\nmax_wait_s = 3\n"


@pytest.fixture(scope="module")
def narrow() -> Iterator[Stack]:
    with (
        start_neuron(config=CONFIG) as neuron,
        start_gateway(gateway_config(neuron.url)) as gateway,
    ):
        stack = Stack(gateway, neuron)
        asyncio.run(eventually(stack.is_servable, "cortex/tiny is servable"))
        yield stack


async def until_waiting(stack: Stack, count: int) -> None:
    async def is_so() -> bool:
        models = (await fetch("GET", f"{stack.neuron.url}/models")).body["models"]
        return models[0].get("waiting", 0) == count

    await eventually(is_so, f"{count} requests wait")


async def streamed(stack: Stack) -> bytes:
    """All that a client who streams gets to see."""
    async with open_stream(stack.url, "ping") as chat:
        assert chat.response.status == 200
        return await chat.response.read()


async def test_a_full_queue_refuses_and_a_long_wait_ends_with_a_time_to_come_back(narrow: Stack):
    async with open_stream(narrow.url, "Hello!", ignore_eos=True, max_tokens=8000) as first:
        await first.read(lambda chat: len(chat.deltas) >= 3)
        whole = asyncio.create_task(ask(narrow.url, "ping"))
        stream = asyncio.create_task(streamed(narrow))
        await until_waiting(narrow, 2)

        refused = await ask(narrow.url, "ping")
        assert refused.status == 429
        assert refused.body["error"]["code"] == "rate_limit_exceeded"
        assert "engine.max_waiting" in refused.body["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0

        late: Answer = await whole
        assert late.status == 503
        assert late.body["error"]["code"] == "no_capacity"
        assert "engine.max_wait_s" in late.body["error"]["message"]
        assert int(late.headers["retry-after"]) > 0

        # Its head is out by then, so that its client knows that somebody is there.
        said = await stream
        assert b": keep-alive\n\n" in said
        assert b"no_capacity" in said
        assert b"[DONE]" not in said
        assert first.error is None
    await until_waiting(narrow, 0)
    assert (await ask(narrow.url, "ping")).status == 200


async def test_a_priority_that_is_none_is_refused_by_name_through_the_gateway(narrow: Stack):
    body = {"model": TINY, "messages": user("ping"), "max_tokens": 1}
    for priority, status in (("urgent", 400), ("batch", 200)):
        headers = {"x-cortex-priority": priority}
        answer = await fetch("POST", narrow.url + CHAT, body, headers=headers)
        assert answer.status == status
    assert (await fetch("POST", narrow.url + CHAT, body)).status == 200


async def test_an_interactive_request_goes_before_a_batch_one_that_came_first(narrow: Stack):
    ended: list[str] = []

    async def wait_for(priority: str) -> None:
        body = {"model": TINY, "messages": user("ping"), "ignore_eos": True, "max_tokens": 200}
        headers = {"x-cortex-priority": priority}
        answer = await fetch("POST", narrow.url + CHAT, body, headers=headers)
        assert answer.status == 200
        ended.append(priority)

    async with open_stream(narrow.url, "Hello!", ignore_eos=True, max_tokens=8000) as first:
        await first.read(lambda chat: len(chat.deltas) >= 3)
        batch = asyncio.create_task(wait_for("batch"))
        await until_waiting(narrow, 1)
        interactive = asyncio.create_task(wait_for("interactive"))
        await until_waiting(narrow, 2)
    await asyncio.gather(batch, interactive)
    assert ended == ["interactive", "batch"]

"""A model that no node has, asked for by many at once; the nodes are real.

Loads take milliseconds here. A worker that is stopped (SIGSTOP) takes as long as a test wants.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from cortex_core.fleet.events import Send
from tests.fleet.real.models import catalogue
from tests.fleet.real.recorded_gateway import Handled
from tests.fleet.real.rig import RealRig, chat_body, endpoints_of, real_rig, running_nodes
from tests.fleet.real.witness import Witness

CROWD = 500
AT_ONCE = {"min_residency_s": 0, "drain_after_s": 600}


@asynccontextmanager
async def stopped_worker(rig: RealRig, node: str) -> AsyncIterator[asyncio.Event]:
    """Until the event is set, or the block is left, the node's worker does nothing."""
    pid = await rig.worker_pid(node)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    go_on = asyncio.Event()

    async def release() -> None:
        try:
            await go_on.wait()
        finally:
            os.kill(pid, signal.SIGCONT)

    releasing = asyncio.create_task(release())
    await asyncio.sleep(0)  # from here on it is released whatever happens
    try:
        yield go_on
    finally:
        releasing.cancel()
        await asyncio.wait([releasing])


async def read_stream(
    response: aiohttp.ClientResponse, first: asyncio.Future[bytes] | None = None
) -> list[bytes]:
    """Its lines; the first of them as soon as it is there."""
    lines: list[bytes] = []
    async for line in response.content:
        if line.strip():
            lines.append(line)
            if first is not None and not first.done():
                first.set_result(line)
    return lines


async def ask_as_stream(
    rig: RealRig, model: str, first: asyncio.Future[bytes] | None = None, tokens: int = 4
) -> list[bytes]:
    body = chat_body(model, tokens, stream=True)
    async with rig.client.post(rig.url + "/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        return await read_stream(response, first)


def sends(rig: RealRig) -> list[Send]:
    return [
        instruction
        for line in rig.record
        if isinstance(line, Handled)
        for instruction in line.out
        if isinstance(instruction, Send)
    ]


async def test_ten_who_ask_at_once_hear_that_they_wait_and_get_ten_answers_of_one_load(
    tmp_path: Path, models: Path
) -> None:
    async with (
        running_nodes(tmp_path, models, 40) as nodes,
        real_rig(tmp_path, catalogue(), endpoints_of(nodes)) as rig,
    ):
        async with stopped_worker(rig, "n0") as go_on:
            loop = asyncio.get_running_loop()
            firsts: list[asyncio.Future[bytes]] = [loop.create_future() for _ in range(10)]
            asked = [asyncio.create_task(ask_as_stream(rig, "m.gguf", one)) for one in firsts]
            # The model cannot be there before they have all heard this.
            assert {line[:1] for line in await asyncio.gather(*firsts)} == {b":"}
            await rig.until_state("n0", "m.gguf", "loading")
            go_on.set()
            answers = await asyncio.gather(*asked)
        assert [lines[-1] for lines in answers] == [b"data: [DONE]\n"] * 10
        witness = Witness(rig.record)
        assert witness.loads == [("m.gguf", "n0")]
        assert len(sends(rig)) == 10


async def test_who_stays_is_served_when_nine_of_ten_leave(tmp_path: Path, models: Path) -> None:
    async with (
        running_nodes(tmp_path, models, 40) as nodes,
        real_rig(tmp_path, catalogue(), endpoints_of(nodes)) as rig,
    ):
        async with stopped_worker(rig, "n0") as go_on:
            asked = [asyncio.create_task(ask_as_stream(rig, "m.gguf")) for _ in range(10)]
            await rig.until_waiting("m.gguf", 10)
            for task in asked[1:]:
                task.cancel()
            await rig.until_waiting("m.gguf", 1)
            go_on.set()
            assert (await asked[0])[-1] == b"data: [DONE]\n"
        assert Witness(rig.record).loads == [("m.gguf", "n0")]
        assert len(sends(rig)) == 1


async def test_nothing_is_evicted_for_ten_who_have_left(tmp_path: Path, models: Path) -> None:
    async with (
        running_nodes(tmp_path, models, 32) as nodes,
        real_rig(tmp_path, catalogue(), endpoints_of(nodes), eviction=AT_ONCE) as rig,
    ):
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[bytes] = loop.create_future()
        busy = asyncio.create_task(ask_as_stream(rig, "l.gguf", begun, tokens=400))
        await begun
        async with stopped_worker(rig, "n0"):
            asked = [asyncio.create_task(ask_as_stream(rig, "xxl.gguf")) for _ in range(10)]
            await rig.until_waiting("xxl.gguf", 10)
            for task in asked:
                task.cancel()
            await rig.until_waiting("xxl.gguf", 0)
        assert (await busy)[-1] == b"data: [DONE]\n"
        # Now there would be nothing in the way.
        assert (await rig.ask("POST", "/v1/chat/completions", chat_body("l.gguf", 4))).status == 200
        witness = Witness(rig.record)
        assert witness.loads == [("l.gguf", "n0")]
        assert witness.evictions == []


async def test_a_crowd_that_waits_is_in_nobodys_way_and_is_served_in_the_end(
    tmp_path: Path, models: Path
) -> None:
    async with (
        running_nodes(tmp_path, models, 40, 12) as nodes,
        real_rig(tmp_path, catalogue(), endpoints_of(nodes), max_waiting=CROWD) as rig,
    ):
        await rig.load("xs.gguf", "n1")
        async with stopped_worker(rig, "n0") as go_on:
            crowd = [
                asyncio.create_task(ask_as_stream(rig, "l.gguf", tokens=1)) for _ in range(CROWD)
            ]
            await rig.until_waiting("l.gguf", CROWD)
            for path in ("/health", "/v1/models", "/v1/models/l.gguf", "/admin/fleet"):
                assert (await rig.ask("GET", path)).status == 200
            chat = chat_body("xs.gguf", 4)
            assert (await rig.ask("POST", "/v1/chat/completions", chat)).status == 200
            one_more = await rig.ask("POST", "/v1/chat/completions", chat_body("l.gguf", 1))
            assert one_more.status == 429
            assert int(one_more.headers["retry-after"]) >= 1
            go_on.set()
            answers = await asyncio.gather(*crowd)
        assert {lines[-1] for lines in answers} == {b"data: [DONE]\n"}
        assert Witness(rig.record).loads == [("xs.gguf", "n1"), ("l.gguf", "n0")]

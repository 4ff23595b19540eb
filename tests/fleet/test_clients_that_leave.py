"""A client that leaves frees what was held for it, at once and wherever its request was."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from tests.fleet.conftest import Rig, eventually
from tests.fleet.scripted_neuron import Call, chunks_of, completion

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What the gateway promises; of several tries the quickest counts, because machines are busy.
LEFT_WITHIN_S = 0.1
TRIES = 5


async def be_left(rig: Rig, after: bytes, **fields: Any) -> float:
    """Ask a, leave once `after` has arrived (or, if empty, once a has the request); returns how
    many seconds later a's connection was closed."""
    began = asyncio.Event()
    closed = asyncio.get_running_loop().create_future()

    async def script(call: Call) -> None:
        if after:
            await call.start_stream()
            await call.chunk(after)
        began.set()
        await call.gone()
        closed.set_result(time.monotonic())

    rig.a.script = script
    reader, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    body = msgspec.json.encode({"model": "only/a"} | fields)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await began.wait()
    if after:
        await reader.readuntil(after)
    left = time.monotonic()
    writer.transport.abort()
    return await asyncio.wait_for(closed, 20) - left


async def test_a_client_that_leaves_before_the_first_byte_cancels_upstream(rig: Rig) -> None:
    times = [await be_left(rig, b"") for _ in range(TRIES)]
    assert min(times) < LEFT_WITHIN_S
    await rig.until_in_flight("a", 0)


async def test_a_client_that_leaves_mid_stream_cancels_upstream(rig: Rig) -> None:
    times = [await be_left(rig, chunks_of("one")[0], stream=True) for _ in range(TRIES)]
    assert min(times) < LEFT_WITHIN_S
    await rig.until_in_flight("a", 0)
    rig.daemon.wait_log(
        "kind=client_gone request_id=.* model=only/a node=a status=499 streamed=True"
    )


async def test_a_client_that_leaves_before_its_body_is_complete_asks_nobody(rig: Rig) -> None:
    _, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: half-body\r\n")
    writer.write(b'Content-Length: 100\r\n\r\n{"model":')
    await writer.drain()
    writer.close()
    line = await asyncio.to_thread(rig.daemon.wait_log, "request_id=half-body")
    assert "kind=client_gone" in line.string
    assert not rig.a.calls


async def test_a_hundred_clients_that_leave_at_once_leave_nothing_behind(rig: Rig) -> None:
    left = 0

    async def script(call: Call) -> None:
        nonlocal left
        await call.gone()
        left += 1

    rig.a.script = rig.b.script = script
    chats = [asyncio.create_task(rig.chat(stream=True)) for _ in range(100)]

    async def are_all_there() -> bool:
        return len(rig.a.calls) + len(rig.b.calls) == 100

    await eventually(are_all_there)
    for chat in chats:
        chat.cancel()

    async def have_all_left() -> bool:
        return left == 100

    await eventually(have_all_left)
    await rig.until_in_flight("a", 0)
    await rig.until_in_flight("b", 0)


async def test_a_quick_answer_follows_a_client_that_left(rig: Rig) -> None:
    await be_left(rig, b"")
    rig.a.script = lambda call: call.answer(completion("fine"))
    assert (await rig.chat("only/a")).status == 200

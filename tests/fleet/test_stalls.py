"""A node that falls silent: before its first byte, or in the middle of its answer."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.fleet.conftest import Rig
from tests.fleet.scripted_neuron import Call, chunks_of
from tests.fleet.test_broken_answers import last_event, last_told_of_m

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS: dict[str, Any] = {"first_byte_timeout_s": 1.0, "idle_timeout_s": 1.0}


async def test_no_first_byte_in_time_is_a_stall(rig: Rig) -> None:
    async def script(call: Call) -> None:
        await call.gone()

    rig.a.script = rig.b.script = script
    reply = await rig.chat()
    error = msgspec.json.decode(reply.body)["error"]
    assert (reply.status, error["code"]) == (504, "stalled")
    assert error["message"] == "the node a sent nothing for 1 s"
    assert len(rig.b.calls) == 0  # a stalled prompt would stall the next node as well
    await rig.until_in_flight("a", 0)


async def test_a_node_that_stalls_one_request_after_another_is_put_aside(rig: Rig) -> None:
    async def script(call: Call) -> None:
        if call.json["stream"]:
            await call.start_stream()
            await call.chunk(chunks_of("one")[0])
        await call.gone()

    rig.a.script = script
    for is_stream in (False, True, False):
        await rig.chat(stream=is_stream)
        await rig.until_in_flight("a", 0)
    assert (len(rig.a.calls), len(rig.b.calls)) == (3, 0)
    told = await last_told_of_m(rig)
    assert told == "put aside for 1 s: the node a sent nothing for 1 s"


async def test_a_head_without_a_byte_after_it_is_a_stall(rig: Rig) -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        await call.gone()

    rig.a.script = script
    assert (await rig.chat("only/a", stream=True)).status == 504


async def test_silence_mid_stream_ends_in_an_error_event(rig: Rig) -> None:
    one = chunks_of("one")[0]
    closed = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(one)
        await call.gone()
        closed.set()

    rig.a.script = script
    reply = await rig.chat("only/a", stream=True)
    assert reply.body.startswith(one)
    assert b"[DONE]" not in reply.body
    assert last_event(reply.body)["error"]["code"] == "stalled"
    await asyncio.wait_for(closed.wait(), 5)


async def test_silence_in_a_whole_answer_is_a_typed_error(rig: Rig) -> None:
    async def script(call: Call) -> None:
        await call.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id":')
        await call.gone()

    rig.a.script = script
    reply = await rig.chat("only/a")
    assert (reply.status, msgspec.json.decode(reply.body)["error"]["code"]) == (504, "stalled")


async def test_a_stream_that_is_slow_but_alive_is_never_cut(rig: Rig) -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        for _ in range(7):
            await asyncio.sleep(0.2)
            await call.chunk(b": still here\n\n")
        for chunk in chunks_of("done"):
            await call.chunk(chunk)
        await call.end()

    rig.a.script = script
    assert (await rig.chat("only/a", stream=True)).body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_takes_no_bytes_is_let_go(rig: Rig) -> None:
    piece = chunks_of("x" * 60_000)[0]
    closed = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        try:
            while True:
                await call.chunk(piece)
        except ConnectionError:
            closed.set()
            raise

    rig.a.script = script
    body = {"model": "only/a", "stream": True}
    async with rig.client.post(rig.url + "/v1/chat/completions", json=body) as response:
        await response.content.readexactly(10)
        await asyncio.wait_for(closed.wait(), 10)
    await rig.until_in_flight("a", 0)


async def test_a_client_that_stops_within_its_request_is_told_so_and_let_go(rig: Rig) -> None:
    reader, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    answer = await asyncio.wait_for(reader.read(), 15)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert msgspec.json.decode(body)["error"]["code"] == "request_timeout"
    writer.close()


async def test_a_request_that_comes_slowly_is_still_taken(rig: Rig) -> None:
    async def pieces():
        for piece in (b'{"mo', b'del":', b'"on', b'ly/a"', b"}"):
            yield piece
            await asyncio.sleep(0.3)

    reply = await rig.ask("POST", "/v1/chat/completions", None, data=pieces())
    assert reply.status == 200

"""Methods that ask for less than an answer, and connections that are shut on one side."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cortex_gateway.dialects import DIALECTS
from tests.fleet.conftest import Rig
from tests.fleet.scripted_neuron import Call, chunks_of, completion

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
ASKED = {"model": "only/a", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
WHOLE = json.dumps(ASKED).encode()
STREAM = json.dumps(ASKED | {"stream": True}).encode()
LAST = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def connection(
    rig: Rig,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    try:
        yield reader, writer
    finally:
        writer.close()


def post(path: str, body: bytes, length: int | None = None, *headers: str) -> bytes:
    """`length`: what its head says."""
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {size}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("path", DIALECTS)
async def test_a_head_of_what_only_answers_to_post_is_a_refusal_without_a_body(
    rig: Rig, path: str
) -> None:
    """The next request on the connection is answered right after it."""
    async with connection(rig) as (reader, writer):
        writer.write(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + LAST)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        rest = await asyncio.wait_for(reader.read(), 10)
    assert head.startswith(b"HTTP/1.1 405")
    assert b"allow: post" in head.lower()
    assert rest.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        *((path, {"POST"}) for path in DIALECTS),
        ("/v1/models", {"GET", "HEAD"}),
        ("/v1/models/only/a", {"GET", "HEAD"}),
        ("/v1/responses/resp_1", {"GET", "HEAD", "DELETE"}),
        ("/v1/responses/resp_1/cancel", {"POST"}),
        ("/health", {"GET", "HEAD"}),
        ("/openapi.json", {"GET", "HEAD"}),
    ],
)
async def test_options_are_what_is_allowed(rig: Rig, path: str, allowed: set[str]) -> None:
    for way in (path, path + "/"):
        reply = await rig.ask("OPTIONS", way)
        assert reply.status == 405
        assert set(reply.headers["allow"].split(", ")) == allowed


async def test_options_of_what_is_not_there_are_none(rig: Rig) -> None:
    reply = await rig.ask("OPTIONS", "/v1/nothing")
    assert (reply.status, "allow" in reply.headers) == (404, False)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_a_client_that_has_shut_its_side_hears_its_stream_to_the_end(
    rig: Rig, path: str
) -> None:
    rig.a.script = lambda call: call.stream(*chunks_of("hel", "lo", usage=True))
    async with connection(rig) as (reader, writer):
        writer.write(post(path, STREAM, None, "Connection: close"))
        writer.write_eof()
        said = await asyncio.wait_for(reader.read(), 10)
    assert said.startswith(b"HTTP/1.1 200")
    assert (b"data: [DONE]" if path == CHAT else b"message_stop") in said


async def test_a_client_that_shuts_its_side_before_its_body_is_whole_has_left(rig: Rig) -> None:
    async with connection(rig) as (reader, writer):
        writer.write(post(CHAT, STREAM, len(STREAM) + 1, "x-request-id: half"))
        writer.write_eof()
        assert b"200" not in await asyncio.wait_for(reader.read(), 10)
    await asyncio.to_thread(rig.daemon.wait_log, r"kind=client_gone request_id=half ")
    assert not rig.a.calls


@pytest.mark.parametrize("more", [b"\r\n", b"G", LAST], ids=["a line's end", "a byte", "a request"])
@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_client_that_sent_more_than_a_request_is_missed_when_it_leaves(
    rig: Rig, more: bytes, is_reset: bool
) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def wait(call: Call) -> None:
        asked.set()
        await call.gone()
        left.set()

    rig.a.script = wait
    async with connection(rig) as (_, writer):
        writer.write(post(CHAT, WHOLE) + more)
        await asyncio.wait_for(asked.wait(), 10)
        if is_reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        await asyncio.wait_for(left.wait(), 10)


async def test_what_comes_while_a_request_is_answered_is_answered_after_it(rig: Rig) -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def wait(call: Call) -> None:
        asked.set()
        await release.wait()
        await call.answer(completion("first"))

    rig.a.script = wait
    long = post("/v1/messages", b"{" + b" " * 300_000)  # more than is read ahead
    async with connection(rig) as (reader, writer):
        writer.write(post(CHAT, WHOLE))
        await asyncio.wait_for(asked.wait(), 10)
        writer.write(long)
        writer.write(LAST)
        release.set()
        said = await asyncio.wait_for(reader.read(), 10)
    places = [said.find(mark) for mark in (b"first", b"invalid_json", b"cortex-gateway")]
    assert -1 not in places
    assert places == sorted(places)


async def test_a_connection_that_its_client_has_closed_is_let_go(rig: Rig) -> None:
    await rig.ask("GET", "/version")
    before = rig.open_files()
    for _ in range(20):
        async with connection(rig) as (reader, writer):
            writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"}"), 10)
    await rig.until_open_files(before)


async def test_messages_in_one_go_are_answered_in_their_order(rig: Rig) -> None:
    rig.a.script = lambda call: call.stream(*chunks_of("hel", "lo", usage=True))
    async with connection(rig) as (reader, writer):
        writer.write(post("/v1/messages", STREAM) + post("/v1/messages/", b"{") + LAST)
        said = await asyncio.wait_for(reader.read(), 10)
    marks = [b"message_stop", b"invalid_json", b"cortex-gateway"]
    places = [said.find(mark) for mark in marks]
    assert -1 not in places
    assert places == sorted(places)

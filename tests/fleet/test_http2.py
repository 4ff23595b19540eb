"""HTTP/2: windows that stay shut, streams that end before their time, methods nobody serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from h2.connection import H2Connection
from h2.events import Event, ResponseReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes

from tests.fleet.conftest import Rig
from tests.fleet.scripted_neuron import Call, chunks_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"idle_timeout_s": 1.0, "drain_s": 0}
CHAT = "/v1/chat/completions"
MUCH = 60_000_000  # more than all buffers on the way hold together


class Talk:
    """One connection of a client that knows that HTTP/2 is spoken there."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.h2 = H2Connection()
        self.h2.initiate_connection()

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> int:
        """Returns its stream."""
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x")]
        stream = self.h2.get_next_available_stream_id()
        given = [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.h2.send_headers(stream, pseudo + given, end_stream=not body)
        if body:
            self.h2.send_data(stream, body, end_stream=True)
        self.send()
        return stream

    def send(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def until(self, kind: type[Event], stream: int) -> Event:
        """The next event of this kind. Raises ConnectionError when the connection ends first."""
        while data := await asyncio.wait_for(self._reader.read(65536), 10):
            for event in self.h2.receive_data(data):
                if isinstance(event, kind) and getattr(event, "stream_id", None) == stream:
                    return event
            self.send()
        raise ConnectionError("closed")


@asynccontextmanager
async def talk(rig: Rig) -> AsyncIterator[Talk]:
    reader, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    try:
        yield Talk(reader, writer)
    finally:
        writer.close()


async def test_a_client_that_keeps_its_window_shut_holds_the_neuron_back(rig: Rig) -> None:
    sent = 0

    async def flood(call: Call) -> None:
        nonlocal sent
        event = chunks_of("x" * 60_000)[0]
        await call.start_stream()
        with contextlib.suppress(ConnectionError):
            while sent < MUCH:
                await call.chunk(event)
                sent += len(event)

    rig.a.script = flood
    async with talk(rig) as client:
        body = msgspec.json.encode({"model": "only/a", "stream": True})
        stream = client.ask("POST", CHAT, body, x_request_id="shut")
        await client.until(StreamReset, stream)
    line = await asyncio.to_thread(rig.daemon.wait_log, r"request_id=shut ")
    assert "kind=client_gone" in line.string
    assert sent < MUCH


async def test_a_connection_that_ends_with_a_shut_window_is_let_go(rig: Rig) -> None:
    before = rig.open_files()
    async with talk(rig) as client:
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        stream = client.ask("GET", "/openapi.json")
        await client.until(ResponseReceived, stream)
    await rig.until_open_files(before)


async def test_a_client_that_connects_through_is_refused_and_its_connection_lives_on(
    rig: Rig,
) -> None:
    async with talk(rig) as client:
        refused = client.h2.get_next_available_stream_id()
        client.h2.send_headers(refused, [(":method", "CONNECT"), (":authority", "x:443")])
        client.send()
        await client.until(StreamReset, refused)
        await client.until(StreamEnded, client.ask("GET", "/version"))
    assert "Traceback" not in rig.daemon.log


async def test_a_body_that_goes_on_after_its_refusal_leaves_the_connection_alone(rig: Rig) -> None:
    async with talk(rig) as client:
        stream = client.h2.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":path", "/x"), (":scheme", "http"), (":authority", "x")]
        client.h2.send_headers(stream, pseudo)
        client.h2.send_data(stream, b"{")
        client.send()
        await client.until(StreamEnded, stream)
        client.h2.send_data(stream, b"}")
        client.h2.send_data(stream, b"", end_stream=True)
        await client.until(StreamEnded, client.ask("GET", "/version"))

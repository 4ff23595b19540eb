"""A neuron's connections: clients that send too much, and clients that close."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.e2e.neuron.client import Client, endless
from tests.processes import Daemon, start_neuron


@pytest.fixture(scope="module")
def neuron() -> Iterator[Daemon]:
    with start_neuron() as daemon:
        yield daemon


@contextlib.asynccontextmanager
async def connection(
    client: Client,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*client.url.removeprefix("http://").split(":"))
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_a_client_that_sent_a_line_too_many_frees_its_sequence_when_it_leaves(
    client: Client,
):
    body = json.dumps(endless() | {"stream": False}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    async with connection(client) as (_, writer):
        writer.write(head.encode() + body + b"\r\n")
        await client.until(lambda s: s.models[0].running == 1)
    await client.until(lambda s: s.models[0].running == 0)


async def test_a_connection_that_its_client_has_closed_is_let_go(client: Client, neuron: Daemon):
    files = Path(f"/proc/{neuron.pid}/fd")
    before = len(list(files.iterdir()))
    for _ in range(20):
        async with connection(client) as (reader, writer):
            writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"}"), 10)
    async with asyncio.timeout(15):
        while len(list(files.iterdir())) > before:
            await asyncio.sleep(0.02)

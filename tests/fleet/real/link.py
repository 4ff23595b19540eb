"""A wire between a gateway and a neuron that can be cut in every way a network has.

A TCP proxy of the test's own: what a gateway sees of a partition is what its sockets say, and those
cannot tell this from the real thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Literal

__all__ = ["Link", "Mode"]

Mode = Literal["open", "refuse", "black hole", "half open"]


class Link:
    """An async context manager; `url` leads to `target`, an http://host:port.

    open: bytes pass. refuse: nobody listens, and what was connected is reset. black hole: whatever
    is sent, on old connections and new ones, goes nowhere, and nobody says so. half open: so it is
    on old connections; new ones are accepted and never heard of again, and the neuron has been told
    that all of them are over.
    """

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("http://").split(":")
        self.target = (host, int(port))
        self.mode: Mode = "open"
        self._server: asyncio.Server | None = None
        self._port = 0
        self._pairs: set[_Pair] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Link:
        await self._listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    async def become(self, mode: Mode) -> None:
        """Opening again resets what was connected while nothing passed: a network that is back has
        forgotten the bytes it lost."""
        former, self.mode = self.mode, mode
        if mode == "open":
            if former in ("black hole", "half open"):
                self.reset()
            self._flows.set()
            if self._server is None:
                await self._listen()
            return
        self._flows.clear()
        if mode == "refuse":
            await self._close()
        elif mode == "half open":
            for pair in self._pairs:
                pair.hang_up_on_neuron()

    def reset(self) -> None:
        """End every connection that there is, at once and rudely."""
        for pair in list(self._pairs):
            pair.reset()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()
        await asyncio.gather(*(pair.over.wait() for pair in self._pairs))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
        self._pairs.add(pair)
        try:
            await pair.run(reader, self.target, self._flows)
        finally:
            self._pairs.discard(pair)


class _Pair:
    """One connection of the gateway's, and the one to the neuron behind it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self._client = client
        self._neuron: asyncio.StreamWriter | None = None
        self._task = asyncio.current_task()
        self._is_deaf = False
        self.over = asyncio.Event()

    async def run(
        self, reader: asyncio.StreamReader, target: tuple[str, int], flows: asyncio.Event
    ) -> None:
        try:
            await flows.wait()
            answers, self._neuron = await asyncio.open_connection(*target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, self._neuron, flows))
                both.create_task(self._pump(answers, self._client, flows))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for writer in (self._client, self._neuron):
                if writer is not None:
                    _rudely(writer)
            self.over.set()

    def hang_up_on_neuron(self) -> None:
        self._is_deaf = True
        if self._neuron is not None:
            _rudely(self._neuron)

    def reset(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        try:
            while data := await reader.read(65536):
                await flows.wait()
                writer.write(data)
                await writer.drain()
            if not self._is_deaf:
                writer.write_eof()
        except OSError:
            if not self._is_deaf:
                raise


def _rudely(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, as a process that is killed does with unread bytes."""
    with contextlib.suppress(OSError):
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

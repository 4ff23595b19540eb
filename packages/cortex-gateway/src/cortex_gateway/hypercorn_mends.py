"""What hypercorn 0.18 gets wrong and a daemon of ours cannot live with, put right in its own classes.

Each mend names its flaw. When a hypercorn without it is the oldest we allow, it goes.
"""

from __future__ import annotations

import asyncio

from hypercorn.asyncio import run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Closed
from hypercorn.protocol.h11 import H11Protocol

__all__ = ["mend"]

READ_AHEAD_BYTES = 64 * 1024
"""How much of the next requests is taken in while one is being answered."""


def mend() -> None:
    """Whatever hypercorn serves in this process from now on is served by the classes below."""
    run.TCPServer = _Connection  # type: ignore[misc]


class _HungUp(Exception):
    """The client has left while its request was being answered."""


class _Connection(TCPServer):
    """Flaw: with one byte beyond a request (an old client's CRLF, the next request) hypercorn
    reads no more until that request is answered, and cannot see that its client has left."""

    async def _read_data(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H11Protocol):
            protocol.can_read = _Turn(protocol, self.reader)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            await super()._read_data()
        except _HungUp:
            await self.protocol.handle(Closed())


class _Turn:
    """Stands in for the event that says when the next request may be looked at. Who waits for it
    goes on reading meanwhile."""

    def __init__(self, protocol: H11Protocol, reader: asyncio.StreamReader) -> None:
        self._protocol = protocol
        self._reader = reader
        self._event = asyncio.Event()
        self._has_left = False

    async def set(self) -> None:
        self._event.set()

    async def clear(self) -> None:
        self._event.clear()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        """Raises _HungUp."""
        reading = asyncio.create_task(self._read_ahead())
        try:
            await self._event.wait()
        finally:
            reading.cancel()
            await asyncio.wait({reading})  # a stream has one reader at a time
        if self._has_left:
            raise _HungUp

    async def _read_ahead(self) -> None:
        room = READ_AHEAD_BYTES
        while room > 0:
            try:
                data = await self._reader.read(room)
            except OSError:
                data = b""
            if not data:
                self._has_left = True
                self._event.set()
                return
            room -= len(data)
            self._protocol.connection.receive_data(data)

"""What hypercorn 0.18 gets wrong and we cannot live with, put right in its own classes.

Each mend names its flaw, and goes with it; they lean on private parts, so another version is not
taken unread. The gateway and the neuron each have this file, one the copy of the other: they share
no package that may know of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib

import hypercorn.protocol
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived
from h2.events import Event as H2Event
from h2.exceptions import ProtocolError
from hypercorn.asyncio import run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol import events, h2
from hypercorn.protocol.h11 import H11Protocol

__all__ = ["mend"]

READ_AHEAD_BYTES = 64 * 1024
"""How much of the next requests is held while one is being answered."""


def mend() -> None:
    """Whatever hypercorn serves in this process from now on is served by the classes below."""
    run.TCPServer = _Connection  # pyright: ignore[reportPrivateImportUsage]
    hypercorn.protocol.H2Protocol = _Http2  # pyright: ignore[reportPrivateImportUsage]
    h2.StreamBuffer = _StreamBuffer


class _HungUp(Exception):
    """The client has left while its request was being answered."""


class _Connection(TCPServer):
    """Flaws: with one byte beyond a request (an old client's CRLF, the next request) hypercorn
    reads no more until that request is answered, and cannot see that its client has left. When
    it does see it, it keeps the connection until an idle one would be closed."""

    _has_ended = False

    async def _read_data(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H11Protocol):
            protocol.can_read = _Turn(protocol, self.reader)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            await super()._read_data()
        except _HungUp:
            await self.protocol.handle(Closed())
        finally:
            self._has_ended = True
            await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if not (self._has_ended and isinstance(event, Updated)):  # whether it is idle
            await super().protocol_send(event)


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
        protocol = self._protocol
        while (room := READ_AHEAD_BYTES - len(protocol.connection.trailing_data[0])) > 0:
            try:
                data = await self._reader.read(room)
            except OSError:
                data = b""
            if not data:
                self._has_left = True
                self._event.set()
                return
            protocol.connection.receive_data(data)


class _StreamBuffer(h2.StreamBuffer):
    """Flaw: a buffer that gives nothing away, because the client's window is shut, asks for more.
    It then takes in whatever the app can produce."""

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < h2.BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data

    @property
    def is_finished(self) -> bool:
        """Nothing will be added."""
        return self._complete


class _Http2(h2.H2Protocol):
    async def handle(self, event: Event) -> None:
        """Flaw: at the connection's end, who waits for room in a buffer goes on waiting, and the
        connection is never let go."""
        if isinstance(event, Closed):
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()
        await super().handle(event)

    async def stream_send(self, event: events.Event) -> None:
        """Flaw: an answer that is left unfinished leaves its client waiting for the rest."""
        if isinstance(event, events.StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if isinstance(buffer, _StreamBuffer) and not buffer.is_finished:
                await self._reset(event.stream_id, ErrorCodes.INTERNAL_ERROR)
                await buffer.close()
                await self._window_updated(event.stream_id)  # its sender finds out, and drops it
        await super().stream_send(event)

    async def _handle_events(self, events: list[H2Event]) -> None:
        """Flaw: more of a body whose request is answered already is the end of its connection."""
        for event in events:
            if isinstance(event, DataReceived) and event.stream_id not in self.streams:
                with contextlib.suppress(ProtocolError):
                    length = event.flow_controlled_length
                    self.connection.acknowledge_received_data(length, event.stream_id)
            else:
                await super()._handle_events([event])
        await self._flush()

    async def _create_stream(self, request: RequestReceived) -> None:
        """Flaw: a CONNECT, which has no path, is the end of its connection."""
        if any(name == b":path" for name, _ in request.headers):
            await super()._create_stream(request)
        else:
            await self._reset(request.stream_id, ErrorCodes.CONNECT_ERROR)

    async def _reset(self, stream: int, why: ErrorCodes) -> None:
        with contextlib.suppress(ProtocolError):  # it has ended already
            self.connection.reset_stream(stream, why)
        await self._flush()

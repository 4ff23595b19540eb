"""One request's events on their way from a worker to whoever answers the client.

A stream never holds up the worker's socket: events wait here, and deltas that pile up for a slow
reader are handed over as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import TracebackType

from msgspec.structs import replace

from cortex_core.errors import CortexError, Fault, RequestTooLarge
from cortex_core.wire import ipc

__all__ = ["RequestStream", "StreamTable"]


class RequestStream:
    """`async with stream:` then `read()` until a Finished came or it raised. Leaving the block
    before that cancels the request in its worker."""

    def __init__(self, request: int, model: str, on_close: Callable[[RequestStream], None]) -> None:
        self.request = request
        self.model = model
        self.is_started = False
        self.is_ended = False  # the worker has nothing more to send, or is gone
        self._on_close = on_close
        self._pending: list[ipc.StepEvent] = []
        self._reader: asyncio.Future[None] | None = None

    async def read(self) -> list[ipc.StepEvent]:
        """Everything that is there, at least one event; adjacent deltas of a channel are merged.

        Waits without a limit of its own: a worker that stalls is killed by its supervisor, which
        ends every stream of it. Raises the CortexError of the fault the request ended with.
        """
        while not self._pending:
            if self.is_ended:
                raise RuntimeError("read() after the end of the stream")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if isinstance(self._pending[0], ipc.Failed):
            raise CortexError.from_fault(self._pending[0].fault)
        events, self._pending = self._pending, []
        if isinstance(events[-1], ipc.Failed):
            self._pending.append(events.pop())  # raised by the next read; first what came before
        return list(_merged(events)) if len(events) > 1 else events

    def push(self, event: ipc.StepEvent) -> None:
        if self.is_ended:
            return
        self.is_started = True
        self.is_ended = isinstance(event, ipc.Finished | ipc.Failed)
        self._pending.append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def close(self) -> None:
        self._on_close(self)

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _merged(events: list[ipc.StepEvent]) -> Iterator[ipc.StepEvent]:
    run: list[ipc.Delta] = []
    for event in events:
        if isinstance(event, ipc.Delta) and (not run or run[0].channel == event.channel):
            run.append(event)
            continue
        if run:
            yield _joined(run)
        run = [event] if isinstance(event, ipc.Delta) else []
        if not run:
            yield event
    if run:
        yield _joined(run)


def _joined(run: list[ipc.Delta]) -> ipc.Delta:
    if len(run) == 1:
        return run[0]
    return ipc.Delta(run[0].request, "".join(delta.text for delta in run), run[0].channel)


class StreamTable:
    """The open streams of one worker."""

    def __init__(self, send: Callable[[ipc.Command], None], on_change: Callable[[], None]) -> None:
        self._send = send
        self._on_change = on_change
        self._streams: dict[int, RequestStream] = {}
        self._next_request = 1

    def open(self, ask: ipc.Ask) -> RequestStream:
        """Send `ask` under a request id of its own. Raises RequestTooLarge."""
        request = self._next_request
        self._next_request += 1
        stream = RequestStream(request, ask.model, self._closed)
        try:
            self._send(replace(ask, request=request))
        except ValueError as error:
            raise RequestTooLarge(f"the prompt is too large: {error}") from None
        self._streams[request] = stream
        self._on_change()
        return stream

    def dispatch(self, step: ipc.Step) -> None:
        """Hand a step's events to their streams; those of a cancelled request go nowhere."""
        streams = self._streams
        for events in (step.started, step.deltas, step.computed, step.finished, step.failed):
            for event in events:
                stream = streams.get(event.request)
                if stream is not None:
                    stream.push(event)
        if step.started or step.finished or step.failed:
            self._on_change()

    def fail(self, fault: Fault, model: str | None = None) -> None:
        """End every running stream (of `model`) with `fault`."""
        for stream in self._streams.values():
            if not stream.is_ended and model in (None, stream.model):
                stream.push(ipc.Failed(stream.request, fault))
        self._on_change()

    def cancel(self, model: str, fault: Fault) -> None:
        """As `fail`, for a worker that lives: it is told to stop computing them."""
        for stream in self._streams.values():
            if not stream.is_ended and stream.model == model:
                self._send(ipc.Cancel(stream.request))
        self.fail(fault, model)

    def load(self, model: str) -> tuple[int, int]:
        """(running, waiting) requests of a model in the worker."""
        running = waiting = 0
        for stream in self._streams.values():
            if stream.model == model and not stream.is_ended:
                if stream.is_started:
                    running += 1
                else:
                    waiting += 1
        return running, waiting

    @property
    def open_count(self) -> int:
        """Requests whose answer is not completely handed over."""
        return len(self._streams)

    def _closed(self, stream: RequestStream) -> None:
        if self._streams.pop(stream.request, None) is None:
            return
        if not stream.is_ended:
            self._send(ipc.Cancel(stream.request))
            stream.is_ended = True
        self._on_change()

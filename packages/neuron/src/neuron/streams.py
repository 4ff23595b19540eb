"""One request's events on their way from a worker to whoever answers the client.

A stream never holds up the worker's socket: events wait here, and deltas that pile up for a slow
reader are handed over as one. When too many wait for a reader that has stopped, the worker is told
to pause the request, and to go on once they are taken. The table also knows what the worker may be
computing at any moment, which is what matters when it crashes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from msgspec.structs import replace

from cortex_core.errors import CortexError, Fault, NoCapacity, RequestTooLarge
from cortex_core.wire import ipc

__all__ = ["RequestStream", "StreamTable", "Tally"]

_MOST_UNREAD = 512
"""Events that wait for a reader before its request is paused. Seconds of a fast answer, so that a
reader who merely stutters is never paused; and 100 KB of events, or 1 MB with 20 log-probabilities
for each token."""


class RequestStream:
    """`async with stream:` then `read()` until a Finished came or it raised. Leaving the block
    before that cancels the request in its worker."""

    def __init__(
        self,
        request: int,
        ask: ipc.Ask,
        on_close: Callable[[RequestStream], None],
        on_pace: Callable[[RequestStream, bool], None],
    ) -> None:
        """`on_pace` is told that the reader has fallen behind (True), and that it has caught up."""
        self.request = request
        self.ask = ask
        self.model = ask.model
        self.sent_before: int | None = None  # the step of its model it was sent before, once it was
        self.is_started = False
        self.is_ended = False  # the worker has nothing more to send, or is gone
        self.paused_before: int | None = None  # as `sent_before`, while it is paused
        self._on_close = on_close
        self._on_pace = on_pace
        self._pending: list[ipc.StepEvent] = []
        self._reader: asyncio.Future[None] | None = None

    @property
    def is_paused(self) -> bool:
        return self.paused_before is not None

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
        if self.is_paused and not self.is_ended:
            self._on_pace(self, False)
        return list(_merged(events)) if len(events) > 1 else events

    def push(self, event: ipc.StepEvent) -> None:
        if self.is_ended:
            return
        self.is_started = True
        self.is_ended = isinstance(event, ipc.Finished | ipc.Failed)
        self._pending.append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if len(self._pending) >= _MOST_UNREAD and not (self.is_paused or self.is_ended):
            self._on_pace(self, True)

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
    scores = [score for delta in run for score in delta.scores]
    return ipc.Delta(run[0].request, "".join(delta.text for delta in run), run[0].channel, scores)


class Tally:
    """Prompt tokens of one model since the neuron started, computed and reused."""

    __slots__ = ("computed", "reused")

    def __init__(self) -> None:
        self.computed = 0
        self.reused: dict[ipc.CacheSource, int] = {"live": 0, "cache": 0, "host": 0}

    def add(self, started: ipc.Started) -> None:
        self.computed += started.prompt - started.cached
        if started.cached:
            source = started.source if started.source != "none" else "cache"
            self.reused[source] += started.cached


class StreamTable:
    """The open streams of one worker.

    `on_answered` is told what was answered in full, of those opened as suspects.
    """

    def __init__(
        self,
        send: Callable[[ipc.Command], None],
        on_change: Callable[[], None],
        on_answered: Callable[[ipc.Ask], None] = lambda ask: None,
    ) -> None:
        self._send = send
        self._on_change = on_change
        self._on_answered = on_answered
        self._streams: dict[int, RequestStream] = {}
        self._next_request = 1
        self._steps: dict[str, int] = {}  # that came from each model
        self._cancelled: dict[int, RequestStream] = {}  # that the worker may not know of yet
        self._suspect: RequestStream | None = None  # the one that the worker has
        self._held: deque[tuple[float, RequestStream]] = deque()  # (since, suspect behind it)
        self.tallies: dict[str, Tally] = {}

    def open(self, ask: ipc.Ask, *, is_suspect: bool = False) -> RequestStream:
        """Send `ask` under a request id of its own. Raises RequestTooLarge.

        Suspects go to the worker one at a time, so that a crash has one suspect.
        """
        stream = RequestStream(self._next_request, ask, self._closed, self._pace)
        self._next_request += 1
        if is_suspect and self._suspect is not None:
            self._held.append((time.monotonic(), stream))
        else:
            self._transmit(stream)
            if is_suspect:
                self._suspect = stream
        self._streams[stream.request] = stream
        self._on_change()
        return stream

    def dispatch(self, step: ipc.Step) -> None:
        """Hand a step's events to their streams; those of a cancelled request go nowhere."""
        streams = self._streams
        self._steps[step.model] = self._steps.get(step.model, 0) + 1
        for events in (step.started, step.deltas, step.computed, step.finished, step.failed):
            for event in events:
                stream = streams.get(event.request)
                if stream is not None:
                    stream.push(event)
        for started in step.started:
            self.tallies.setdefault(step.model, Tally()).add(started)
        for event in step.finished:
            self._ended(event.request, is_answered=event.reason != "cancelled")
        for event in step.failed:
            self._ended(event.request, is_answered=False)
        if step.started or step.finished or step.failed:
            self._on_change()

    def fail(self, fault: Fault) -> None:
        """The worker is lost: end every running stream with `fault`."""
        for stream in self._streams.values():
            if not stream.is_ended:
                stream.push(ipc.Failed(stream.request, fault))
        self._cancelled.clear()
        self._held.clear()
        self._suspect = None
        self._on_change()

    def cancel(self, fault: Fault, model: str | None = None) -> None:
        """End every running stream (of `model`) with `fault`, in a worker that lives: it is told
        to stop computing them."""
        for stream in self._streams.values():
            if not stream.is_ended and model in (None, stream.model):
                self._recall(stream)
                stream.push(ipc.Failed(stream.request, fault))
        self._on_change()

    def expire(self, most_s: Callable[[str], float]) -> None:
        """End the suspects that have been held for longer than their model lets requests wait."""
        now = time.monotonic()
        for since, stream in list(self._held):
            limit_s = most_s(stream.model)
            if now - since > limit_s:
                self._held.remove((since, stream))
                stream.push(
                    ipc.Failed(
                        stream.request,
                        NoCapacity(
                            f"{stream.model!r}: waited {limit_s:g} s (max_wait_s) behind another "
                            "prompt that was in flight when a worker crashed"
                        ).fault,
                    )
                )
                self._on_change()

    def in_flight(self, model: str | None = None) -> list[ipc.Ask]:
        """What the worker (or its engine of `model`) may be computing: all that it has started,
        and what was sent so lately that it may be reading it, to the cancelled and not yet
        forgotten. Not what waits for its turn, nor what it has been told to pause."""
        return [
            stream.ask
            for stream in (self._streams | self._cancelled).values()
            if model in (None, stream.model) and self._is_in_flight(stream)
        ]

    def _is_in_flight(self, stream: RequestStream) -> bool:
        if stream.sent_before is None:
            return False
        if stream.request in self._cancelled:
            return True
        if stream.is_ended:
            return False
        # An engine reads what has arrived between two steps; and only a generation says that it
        # has started.
        steps = self._steps.get(stream.model, 0)
        if stream.paused_before is not None and steps - stream.paused_before >= 2:
            return False
        is_fresh = steps - stream.sent_before < 2
        return stream.is_started or is_fresh or not isinstance(stream.ask, ipc.Generate)

    def load(self, model: str) -> tuple[int, int]:
        """(running, waiting) requests of a model in the worker; a paused one is running."""
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

    @property
    def running_count(self) -> int:
        """Requests that the worker has not ended."""
        return sum(not stream.is_ended for stream in self._streams.values())

    def _transmit(self, stream: RequestStream) -> None:
        """Raises RequestTooLarge."""
        try:
            self._send(replace(stream.ask, request=stream.request))
        except ValueError as error:
            raise RequestTooLarge(f"the prompt is too large: {error}") from None
        stream.sent_before = self._steps.get(stream.model, 0)

    def _pace(self, stream: RequestStream, is_behind: bool) -> None:
        if is_behind:
            stream.paused_before = self._steps.get(stream.model, 0)
            self._send(ipc.Pause(stream.request))
        else:
            stream.paused_before = None
            self._send(ipc.Resume(stream.request))

    def _closed(self, stream: RequestStream) -> None:
        if self._streams.pop(stream.request, None) is None:
            return
        if not stream.is_ended:
            self._recall(stream)
            stream.is_ended = True
        self._on_change()

    def _recall(self, stream: RequestStream) -> None:
        """Nobody wants the answer any more. Until the worker has said that it has ended, it may be
        just what the worker hangs on."""
        if stream.sent_before is None:
            self._held = deque(each for each in self._held if each[1] is not stream)
            return
        self._send(ipc.Cancel(stream.request))
        self._cancelled[stream.request] = stream

    def _ended(self, request: int, *, is_answered: bool) -> None:
        """The worker has said its last word about a request."""
        self._cancelled.pop(request, None)
        suspect = self._suspect
        if suspect is None or suspect.request != request:
            return
        self._suspect = None
        if is_answered:
            self._on_answered(suspect.ask)
        while self._held and self._suspect is None:
            _, stream = self._held.popleft()
            try:
                self._transmit(stream)
            except RequestTooLarge as error:
                stream.push(ipc.Failed(stream.request, error.fault))
            else:
                self._suspect = stream

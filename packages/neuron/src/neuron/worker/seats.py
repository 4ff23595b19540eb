"""Who has a place in a model's memory: the scheduler says whose turn it is, `memory` whether there
is room. Where there is none, a paused sequence's place is the first to be taken, and for cells that
those who run cannot do without also the youngest's.
"""

from __future__ import annotations

from cortex_core.wire.ipc import Started
from neuron.worker.kv import Placement, Wait
from neuron.worker.memory import Memory
from neuron.worker.scheduler import Scheduler
from neuron.worker.stream import Stream

__all__ = ["Seats"]


class Seats:
    """For one thread: the engine's."""

    def __init__(self, scheduler: Scheduler[Stream], memory: Memory) -> None:
        self._scheduler = scheduler
        self._memory = memory
        self._kv = memory.kv

    def admit(self) -> list[Started]:
        """Give sequences to those who wait, in the scheduler's order. Who waits for another's
        prefill is passed over; nobody passes one who waits for room."""
        scheduler, kv = self._scheduler, self._kv
        started: list[Started] = []
        if not scheduler.waiting or not (kv.has_free or scheduler.first_paused()):
            return started
        for stream in scheduler.candidates():
            if stream.wait is not None and kv.is_on_its_way(stream.wait):
                continue
            placement = self._place(stream)
            if placement is None:
                break
            if isinstance(placement, Wait):
                stream.wait = placement
                continue
            stream.wait = None
            self._unpark(stream)
            scheduler.start(stream, placement.sequence, placement.cached)
            if not stream.started:
                stream.started = True
                stream.cached = placement.cached
                started.append(_started(stream, placement))
        return started

    def make_room(self) -> None:
        """The running sequences' next tokens need cells. Where the pool has none, what has ended
        goes, then what is paused; then the youngest waits in host memory until there is room
        again."""
        scheduler = self._scheduler
        while scheduler.decoding and not self._memory.make_room(len(scheduler.decoding)):
            if paused := scheduler.first_paused():
                self._set_aside(paused)
                continue
            stream = scheduler.youngest()
            assert stream is not None
            held = self._kv.tokens(stream.slot).copy()
            parked = self._memory.suspend(stream.slot, held)
            scheduler.suspend(stream, stream.suspend(held, parked))

    def leave(self, stream: Stream) -> None:
        """It has ended, wherever it was."""
        self._scheduler.remove(stream)
        if stream.slot >= 0:
            self._kv.release(stream.slot)
        self._unpark(stream)

    def _place(self, stream: Stream) -> Placement | Wait | None:
        """Paused ones give up their places, one by one, if that is what it takes."""
        while True:
            placement = self._memory.acquire(
                stream.todo,
                needs_logits=not stream.resumes,
                rank=stream.rank,
                stops=stream.stops,
            )
            if placement is not None:
                return placement
            paused = self._scheduler.first_paused()
            if paused is None:
                return None
            self._set_aside(paused)

    def _set_aside(self, stream: Stream) -> None:
        """What a paused sequence holds is from here on like the cache of one that has ended: it
        stays until its place is needed, then it is parked within the host's budget. Pinned as the
        youngest's is, the memory of all who ever stopped reading would have no limit."""
        held = self._kv.tokens(stream.slot).copy()
        self._kv.release(stream.slot)
        self._scheduler.suspend(stream, stream.suspend(held, None))

    def _unpark(self, stream: Stream) -> None:
        if stream.parked is not None:
            self._kv.host.drop(stream.parked)
            stream.parked = None


def _started(stream: Stream, placement: Placement) -> Started:
    return Started(
        stream.request,
        len(stream.prompt),
        placement.cached,
        placement.source,
        placement.miss,
    )

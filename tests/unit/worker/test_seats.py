"""Who is admitted, paused and set aside, over a simulated memory: every sequence that runs finds
there just what it has said so far, and nobody waits for a place of one that is paused."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from hypothesis import example, given
from hypothesis import strategies as st

from cortex_core.wire.ipc import Generate, Priority, Sampling
from neuron.worker import kv as kv_module
from neuron.worker import pool as pool_module
from neuron.worker import slots as slots_module
from neuron.worker.detokenize import Pieces
from neuron.worker.host_cache import HostCache
from neuron.worker.scheduler import Scheduler
from neuron.worker.seats import Seats
from neuron.worker.stream import Stream
from tests.unit.worker.test_kv import Cache, ids

CONTEXT = 32
PIECES = Pieces(100, lambda token: b"x")


class Hall:
    """Streams, who has a seat, and what an engine does with them but compute."""

    def __init__(self, parallel: int, **layout: Any) -> None:
        self.cache = Cache(parallel, CONTEXT, **layout)
        self.scheduler: Scheduler[Stream] = Scheduler(
            8, 8, is_unified=bool(self.cache.context.pool)
        )
        self.seats = Seats(self.scheduler, self.cache.memory)
        self.alive: list[Stream] = []
        self.said: dict[int, list[int]] = {}

    def ask(self, *prompt: int, answer: int = 4, priority: Priority = "interactive") -> Stream:
        request = len(self.said) + 1
        stream = Stream(
            Generate(request, "m", [], Sampling(), priority=priority),
            ids(*prompt),
            limit=min(answer, CONTEXT - len(prompt)),
            ends=frozenset(),
            pieces=PIECES,
            reasoning=None,
            sampler=None,
            stops=() if self.cache.context.can_trim else (len(prompt) // 2,),
        )
        self.said[request] = []
        self.alive.append(stream)
        self.scheduler.enqueue(stream)
        return stream

    def turn(self) -> None:
        self.seats.admit()
        has_waiting = any(stream.wait is None for stream in self.scheduler.waiting)
        assert not has_waiting or self.scheduler.first_paused() is None
        self.seats.make_room()
        batch = self.scheduler.next()
        if batch is None:
            return
        for stream in list(batch.decode):
            held = self.cache.held(stream.slot)
            assert [*held, stream.token] == [*stream.prompt.tolist(), *self.said[stream.request]]
            self.cache.generate(stream.slot, stream.token)
            self._take(stream)
        for chunk in batch.chunks:
            stream = chunk.sequence
            assert len(self.cache.held(stream.slot)) == chunk.start
            self.cache.compute(stream.slot, stream.todo[chunk.start : chunk.stop].tolist())
            if chunk.stop in stream.stops:
                self.cache.memory.snapshot(stream.slot)
        self.scheduler.computed(batch)
        for chunk in batch.chunks:
            if chunk.is_last and not chunk.sequence.resumes:
                self._take(chunk.sequence)

    def leave(self, stream: Stream) -> None:
        self.seats.leave(stream)
        self.alive.remove(stream)

    def finish(self) -> None:
        for _ in range(1000):
            if not self.scheduler.has_work:
                return
            self.turn()
        raise AssertionError("somebody waits for ever")

    def _take(self, stream: Stream) -> None:
        token = (7 * stream.request + len(self.said[stream.request])) % 2
        self.said[stream.request].append(token)
        if stream.take(token, []):
            self.leave(stream)


def test_a_paused_one_with_a_free_seat_beside_it_keeps_its_own() -> None:
    hall = Hall(parallel=2)
    stopped = hall.ask(1, 2, 3)
    hall.turn()
    hall.scheduler.pause(stopped)
    hall.ask(4, 5, 6)
    hall.finish()
    assert (stopped.slot, hall.alive) == (0, [stopped])


def test_a_paused_one_loses_its_seat_to_who_waits_and_finds_its_tokens_again() -> None:
    hall = Hall(parallel=1)
    stopped = hall.ask(1, 2, 3)
    for _ in range(3):
        hall.turn()
    hall.scheduler.pause(stopped)
    hall.ask(4, 5, 6)
    hall.finish()
    assert (stopped.slot, hall.alive) == (-1, [stopped])
    hall.scheduler.resume(stopped)
    hall.finish()
    assert len(hall.said[1]) == 4


def test_what_is_set_aside_is_not_pinned_in_host_memory() -> None:
    hall = Hall(parallel=1, host=HostCache(0))
    for prompt in (range(20), range(1, 21), range(2, 22)):
        hall.scheduler.pause(hall.ask(*prompt))
        hall.finish()
    assert hall.cache.kv.host.size("") == 0
    for stream in list(hall.alive):
        hall.scheduler.resume(stream)
    hall.finish()
    assert not hall.alive


def test_who_loses_its_seat_again_while_it_is_recomputed_forgets_nothing() -> None:
    with patch.multiple(pool_module, _MARGIN=0):
        hall = Hall(2, pool=34, host=HostCache(0))
        twice = hall.ask(*range(12), answer=20, priority="batch")
        for _ in range(8):
            hall.turn()
        hall.scheduler.pause(twice)
        hall.ask(*range(40, 65), answer=1)
        hall.turn()
        assert twice.slot == -1, "once"
        while len(hall.alive) > 1:
            hall.turn()
        other = hall.ask(*range(70, 82), answer=20)
        while len(hall.said[other.request]) < 3:
            hall.turn()
        hall.scheduler.resume(twice)
        while twice.slot < 0:
            hall.turn()
        while twice.slot >= 0:
            assert twice in hall.scheduler.prefilling
            hall.turn()
        hall.finish()
        assert len(hall.said[twice.request]) == 20


STIMULI = st.one_of(
    st.tuples(
        st.lists(st.integers(0, 1), min_size=1, max_size=20),
        st.integers(1, 20),
        st.sampled_from(["interactive", "batch"]),
    ),
    st.tuples(st.sampled_from(["pause", "resume", "leave"]), st.integers(0, 7)),
    st.tuples(st.just("turn"), st.integers(1, 6)),
)


@given(
    st.lists(STIMULI, max_size=40),
    st.sampled_from([(0, True), (0, False), (50, True), (200, True)]),
    st.sampled_from([0, 150, 10**6]),
)
@example(  # what has ended is less than those who run need, and the youngest has to go, too
    [
        ([0], 1, "interactive"),
        ([0] * 6, 14, "interactive"),
        ([0, 0, 1, 0, 0, 0, 0, 0, 0], 12, "interactive"),
        ([0], 12, "interactive"),
    ],
    (50, True),
    0,
)
def test_whoever_is_paused_and_resumed_all_that_stay_are_answered_in_full(
    stimuli: list[tuple[Any, ...]], layout: tuple[int, bool], budget: int
) -> None:
    pool, can_trim = layout
    with (
        patch.object(kv_module, "WORTH", 3),
        patch.multiple(slots_module, SMALL=6, WORTH=3, _COPY_WORTH=4),
        patch.multiple(pool_module, WORTH=3, _MARGIN=2),
    ):
        hall = Hall(3, pool=pool, can_trim=can_trim, host=HostCache(budget))
        for what, number, *priority in stimuli:
            if priority:
                hall.ask(*what, answer=number, priority=priority[0])
            elif what == "turn":
                for _ in range(number):
                    hall.turn()
            elif hall.alive:
                stream = hall.alive[number % len(hall.alive)]
                if what == "leave":
                    hall.leave(stream)
                elif what == "pause":
                    hall.scheduler.pause(stream)
                else:
                    hall.scheduler.resume(stream)
            assert hall.cache.kv.cells_used == hall.cache.context.used
            assert hall.cache.kv.host.bytes <= budget
        staying = list(hall.alive)
        for stream in staying:
            hall.scheduler.resume(stream)
        hall.finish()
        assert [len(hall.said[each.request]) for each in staying] == [s.limit for s in staying]
        assert hall.cache.kv.cells_running == 0
        hall.cache.memory.park_all()
        assert hall.cache.kv.cells_used == hall.cache.context.used == 0

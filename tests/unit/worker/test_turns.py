"""Who starts, whose prompt is computed, who makes way, and who is paused."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.scheduler import Scheduler, Sequence
from tests.unit.worker.scheduled import admit, names, run, wait_for

# who is next


def test_first_come_first_served() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    wait_for(scheduler, "a", "b", "c")
    assert names(scheduler) == ["a", "b", "c"]


def test_a_burst_takes_turns_with_everybody_else() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    wait_for(scheduler, "burst", "burst", "burst", "burst", "b", "c", "b")
    assert names(scheduler) == ["burst", "b", "c", "burst", "b", "burst", "burst"]


def test_who_has_a_sequence_already_lets_others_start() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    running = Sequence(prompt_size=4, caller="a")
    scheduler.enqueue(running)
    scheduler.start(running, 0, 0)
    wait_for(scheduler, "a", "b")
    assert next(scheduler.candidates()).caller == "b"
    scheduler.remove(running)
    assert next(scheduler.candidates()).caller == "a"


def test_interactive_goes_before_batch() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    wait_for(scheduler, "batch", "batch", rank=1)
    wait_for(scheduler, "human")
    assert names(scheduler) == ["human", "batch", "batch"]


def test_an_interactive_prompt_is_computed_before_a_batch_prompt_in_progress() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    wait_for(scheduler, "batch", rank=1)
    scheduler.start(scheduler.waiting[0], 0, 0)
    scheduler.enqueue(Sequence(prompt_size=6, caller="human"))
    scheduler.start(scheduler.waiting[0], 1, 0)
    assert run(scheduler) == "p1:0-6"


# whose prompt is computed first


def computing(scheduler: Scheduler[Sequence], slot: int, caller: str, prompt: int) -> Sequence:
    sequence = Sequence(prompt_size=prompt, caller=caller)
    scheduler.enqueue(sequence)
    scheduler.start(sequence, slot, 0)
    return sequence


def test_a_short_prompt_waits_for_a_chunk_of_anothers_burst_and_not_for_all_of_it() -> None:
    scheduler = Scheduler[Sequence](512, 512)
    for slot in range(3):
        computing(scheduler, slot, "burst", 1000)
    assert run(scheduler) == "p0:0-488"
    computing(scheduler, 3, "other", 50)
    run(scheduler)
    assert [sequence.slot for sequence in scheduler.decoding] == [3]


def test_prompts_of_one_length_are_computed_one_after_the_other_whoever_asks() -> None:
    scheduler = Scheduler[Sequence](512, 512)
    for slot, caller in enumerate("ab"):
        computing(scheduler, slot, caller, 1024)
    trace = [run(scheduler) for _ in range(4)]
    assert trace == ["p0:0-512", "p0:512-1024", "d0", "p1:0-512"]


def test_the_prompts_of_one_caller_are_computed_in_the_order_they_came() -> None:
    scheduler = Scheduler[Sequence](512, 512)
    for slot, prompt in enumerate((900, 600, 10)):
        computing(scheduler, slot, "a", prompt)
    assert [sequence.slot for sequence in scheduler.prefilling] == [0, 1, 2]


def test_who_left_its_burst_has_no_burst_before_its_next_prompt() -> None:
    scheduler = Scheduler[Sequence](512, 512)
    burst = [computing(scheduler, slot, "a", 5000) for slot in range(3)]
    for sequence in burst:
        scheduler.remove(sequence)
    computing(scheduler, 3, "b", 600)
    computing(scheduler, 4, "a", 500)
    assert run(scheduler) == "p4:0-500"


@given(st.lists(st.integers(2, 3000), min_size=1, max_size=40), st.booleans())
def test_a_long_prompt_is_done_however_many_others_come_after_it(
    others: list[int], is_unified: bool
) -> None:
    scheduler = Scheduler[Sequence](512, 512, is_unified=is_unified)
    long = computing(scheduler, 0, "long", 4000)
    computed = 0
    for slot, prompt in enumerate(itertools.cycle(others), 1):
        computing(scheduler, slot, f"other {slot}", prompt)
        while not (batch := scheduler.next()) or not batch.chunks:
            pass
        scheduler.computed(batch)
        computed += sum(chunk.stop - chunk.start for chunk in batch.chunks)
        assert computed <= 30_000
        if long.computed == 4000:
            break


# room


def test_the_youngest_makes_way_and_those_of_batch_first() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    wait_for(scheduler, "old", "young")
    wait_for(scheduler, "batch", rank=1)
    wait_for(scheduler, "newest")
    for slot, sequence in enumerate(list(scheduler.waiting)):
        scheduler.start(sequence, slot, 0)
    left = []
    while youngest := scheduler.youngest():
        left.append(youngest.caller)
        scheduler.remove(youngest)
    assert left == ["batch", "newest", "young", "old"]


def test_a_suspended_sequence_is_the_next_to_start_and_makes_way_last() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    wait_for(scheduler, "a", "b")
    first, second = scheduler.waiting
    for slot, sequence in enumerate((first, second)):
        scheduler.start(sequence, slot, 0)
    run(scheduler)
    wait_for(scheduler, "c")
    scheduler.suspend(second, 9)
    assert (second.prompt_size, second.computed, second.slot) == (9, 0, -1)
    assert [sequence.caller for sequence in scheduler.candidates()] == ["b", "c"]
    scheduler.start(second, 5, 9)
    assert second in scheduler.decoding
    assert scheduler.youngest() is first


# who is paused


def test_a_paused_sequence_gets_no_row_and_goes_on_where_it_was() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    first, _ = (admit(scheduler, slot, prompt=4, cached=4) for slot in (0, 1))
    assert run(scheduler) == "d0,1"
    scheduler.pause(first)
    assert run(scheduler) == "d1"
    scheduler.resume(first)
    assert run(scheduler) == "d0,1"


def test_where_all_are_paused_there_is_no_work() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    sequence = admit(scheduler, 0, prompt=4, cached=4)
    scheduler.pause(sequence)
    assert not scheduler.has_work
    assert run(scheduler) == "-"
    scheduler.resume(sequence)
    assert scheduler.has_work


def test_a_prompt_of_one_that_is_paused_is_computed_first() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    sequence = admit(scheduler, 0, prompt=12)
    assert run(scheduler) == "p0:0-8"
    scheduler.pause(sequence)
    assert [run(scheduler), run(scheduler)] == ["p0:8-12", "-"]
    scheduler.resume(sequence)
    assert run(scheduler) == "d0"


def test_one_that_is_resumed_while_its_prompt_is_computed_runs() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    sequence = admit(scheduler, 0, prompt=12)
    scheduler.pause(sequence)
    scheduler.resume(sequence)
    assert [run(scheduler) for _ in range(3)] == ["p0:0-8", "p0:8-12", "d0"]


def test_nobody_runs_beside_the_paused_so_a_chunk_is_a_full_batch() -> None:
    scheduler = Scheduler[Sequence](512, 512, max_step_ms=100)
    scheduler.measured(100, 0.2)
    scheduler.pause(admit(scheduler, 0, prompt=4, cached=4))
    admit(scheduler, 1, prompt=512)
    assert run(scheduler) == "p1:0-512"


def test_who_was_paused_first_is_the_first_to_lose_its_slot() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    sequences = [admit(scheduler, slot, prompt=4, cached=4) for slot in range(3)]
    assert scheduler.first_paused() is None
    for sequence in (sequences[2], sequences[0]):
        scheduler.pause(sequence)
    assert scheduler.first_paused() is sequences[2]
    scheduler.suspend(sequences[2], 9)
    assert scheduler.first_paused() is sequences[0]
    assert scheduler.youngest() is sequences[1]


def test_a_paused_sequence_that_lost_its_slot_waits_for_none_until_it_is_resumed() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    wait_for(scheduler, "stopped", "other")
    stopped, _ = scheduler.waiting
    scheduler.start(stopped, 0, 4)
    scheduler.pause(stopped)
    scheduler.suspend(stopped, 9)
    assert [sequence.caller for sequence in scheduler.candidates()] == ["other"]
    scheduler.resume(stopped)
    assert names(scheduler) == ["stopped", "other"]
    assert scheduler.prefilling[0] is stopped, "its 9 tokens are computed again"


def test_one_that_lost_its_slot_before_it_was_paused_waits_for_none_either() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    sequence = admit(scheduler, 0, prompt=4, cached=4)
    scheduler.suspend(sequence, 9)
    scheduler.pause(sequence)
    assert not scheduler.has_work
    scheduler.resume(sequence)
    assert list(scheduler.candidates()) == [sequence]


def test_a_paused_sequence_with_a_slot_counts_for_its_caller_and_one_without_does_not() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    wait_for(scheduler, "stopped")
    stopped = scheduler.waiting[0]
    scheduler.start(stopped, 0, 4)
    scheduler.pause(stopped)
    wait_for(scheduler, "stopped", "other")
    assert next(scheduler.candidates()).caller == "other"
    scheduler.suspend(stopped, 9)
    assert next(scheduler.candidates()).caller == "stopped"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["new", "pause", "resume", "make way", "end", "admit", "step"]),
            st.integers(0, 5),
        ),
        max_size=60,
    )
)
def test_every_sequence_is_in_one_place_and_only_those_that_are_wanted_get_rows(
    stimuli: list[tuple[str, int]],
) -> None:
    slots = 3
    scheduler = Scheduler[Sequence](8, 8)
    alive: list[Sequence] = []
    for kind, which in stimuli:
        chosen = alive[which % len(alive)] if alive else None
        before, changes = list(scheduler.decoding), scheduler.changes
        free = set(range(slots)) - {sequence.slot for sequence in alive}
        if kind == "new":
            alive.append(Sequence(prompt_size=2 + which, caller=str(which % 2)))
            scheduler.enqueue(alive[-1])
        elif kind == "admit" and free:
            if first := next(scheduler.candidates(), None):
                scheduler.start(first, min(free), first.prompt_size if which % 2 else 0)
        elif kind == "step":
            if batch := scheduler.next():
                scheduler.computed(batch)
                chunks = [chunk.sequence for chunk in batch.chunks]
                assert all(sequence.slot >= 0 for sequence in (*batch.decode, *chunks))
                assert not any(sequence.is_paused for sequence in batch.decode)
        elif chosen is not None and kind == "pause":
            scheduler.pause(chosen)
        elif chosen is not None and kind == "resume":
            scheduler.resume(chosen)
        elif chosen is not None and kind == "make way" and chosen.slot >= 0:
            scheduler.suspend(chosen, chosen.prompt_size + 1)
        elif chosen is not None and kind == "end":
            scheduler.remove(chosen)
            alive.remove(chosen)
        placed = [
            *scheduler.waiting,
            *scheduler.prefilling,
            *scheduler.decoding,
            *scheduler.paused,
        ]
        assert sorted(map(id, placed)) == sorted(map(id, alive))
        assert scheduler.changes > changes or before == scheduler.decoding
        for sequence in alive:
            runs = sequence in scheduler.decoding or sequence in scheduler.waiting
            assert not (runs and sequence.is_paused)
            assert sequence.is_paused or sequence not in scheduler.paused
    for sequence in alive:
        scheduler.resume(sequence)
    assert scheduler.has_work == bool(alive)

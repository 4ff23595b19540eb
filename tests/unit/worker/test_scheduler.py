"""What the next batch holds, as traces: sequences come, batches go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.scheduler import Batch, Scheduler, Sequence


def run(scheduler: Scheduler[Sequence]) -> str:
    """Compute the next batch; say which: `d0,1` rows of slots 0 and 1, `p2:0-5` a chunk,
    `p2:0-5 p3:0-5` two in one pass."""
    batch = scheduler.next()
    if batch is None:
        return "-"
    trace = "d" + ",".join(str(sequence.slot) for sequence in batch.decode)
    if batch.chunks:
        trace = " ".join(f"p{c.sequence.slot}:{c.start}-{c.stop}" for c in batch.chunks)
    scheduler.computed(batch)
    return trace


def admit(scheduler: Scheduler[Sequence], slot: int, prompt: int, cached: int = 0) -> Sequence:
    sequence = Sequence(prompt_size=prompt)
    scheduler.enqueue(sequence)
    scheduler.start(sequence, slot, cached)
    return sequence


def test_without_sequences_there_is_no_batch() -> None:
    assert run(Scheduler(8, 8)) == "-"


def test_a_sequence_without_a_slot_computes_nothing() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    scheduler.enqueue(Sequence(prompt_size=3))
    assert scheduler.has_work
    assert run(scheduler) == "-"


def test_a_prompt_is_computed_and_then_runs() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    admit(scheduler, 0, prompt=5)
    assert [run(scheduler) for _ in range(3)] == ["p0:0-5", "d0", "d0"]


def test_cached_tokens_are_not_computed_again() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    admit(scheduler, 3, prompt=5, cached=3)
    assert run(scheduler) == "p3:3-5"


def test_a_long_prompt_leaves_a_row_to_the_running_between_its_chunks() -> None:
    scheduler = Scheduler[Sequence](8, 8)
    admit(scheduler, 0, prompt=4)
    assert [run(scheduler), run(scheduler)] == ["p0:0-4", "d0"]
    admit(scheduler, 1, prompt=20)
    trace = [run(scheduler) for _ in range(7)]
    assert trace == ["d0", "p1:0-8", "d0", "p1:8-16", "d0", "p1:16-20", "d0,1"]


def test_short_prompts_share_the_budget_in_the_order_they_came() -> None:
    scheduler = Scheduler[Sequence](10, 10)
    admit(scheduler, 5, prompt=2)
    assert [run(scheduler), run(scheduler)] == ["p5:0-2", "d5"]
    for slot in (4, 0, 2):
        admit(scheduler, slot, prompt=4)
    trace = [run(scheduler) for _ in range(6)]
    assert trace == ["d5", "p0:0-4 p4:0-4", "p2:0-2", "d0,4,5", "p2:2-4", "d0,2,4,5"]


def test_prompts_of_one_length_are_computed_in_one_pass() -> None:
    scheduler = Scheduler[Sequence](100, 20)
    for slot in range(5):
        admit(scheduler, slot, prompt=6)
    trace = [run(scheduler) for _ in range(3)]
    assert trace == ["p0:0-6 p1:0-6 p2:0-6", "p3:0-6 p4:0-6", "d0,1,2,3,4"]


def test_a_longer_prompt_joins_with_a_chunk_as_long_as_the_first() -> None:
    scheduler = Scheduler[Sequence](100, 20)
    admit(scheduler, 0, prompt=6)
    admit(scheduler, 1, prompt=10)
    assert [run(scheduler), run(scheduler)] == ["p0:0-6 p1:0-6", "p1:6-10"]


def test_a_prompt_that_would_be_left_with_one_token_does_not_join() -> None:
    scheduler = Scheduler[Sequence](100, 20)
    admit(scheduler, 0, prompt=6)
    admit(scheduler, 1, prompt=7)
    assert [run(scheduler), run(scheduler)] == ["p0:0-6", "p1:0-7"]


def test_a_chunk_that_fills_a_pass_goes_alone() -> None:
    scheduler = Scheduler[Sequence](100, 8)
    admit(scheduler, 0, prompt=12)
    admit(scheduler, 1, prompt=4)
    assert [run(scheduler), run(scheduler)] == ["p0:0-12", "p1:0-4"]


def test_running_rows_are_in_the_order_of_their_slots() -> None:
    scheduler = Scheduler[Sequence](100, 100)
    for slot in (3, 1, 2, 0):
        admit(scheduler, slot, prompt=2)
    assert [run(scheduler) for _ in range(2)][-1] == "d0,1,2,3"


@pytest.mark.parametrize("state", ["waiting", "prefilling", "decoding", "paused"])
def test_a_removed_sequence_is_in_no_batch(state: str) -> None:
    scheduler = Scheduler[Sequence](8, 8)
    sequence = Sequence(prompt_size=20 if state == "prefilling" else 4)
    scheduler.enqueue(sequence)
    if state != "waiting":
        scheduler.start(sequence, 0, 0)
        run(scheduler)
    if state == "paused":
        scheduler.pause(sequence)
    scheduler.remove(sequence)
    scheduler.resume(sequence)
    assert not scheduler.has_work
    assert run(scheduler) == "-"


def test_no_pass_is_left_with_one_token_of_a_prompt() -> None:
    scheduler = Scheduler[Sequence](16, 4)
    admit(scheduler, 0, prompt=5)
    assert [run(scheduler), run(scheduler)] == ["p0:0-3", "p0:3-5"]


def test_sequences_of_one_pool_go_together_whatever_their_lengths() -> None:
    scheduler = Scheduler[Sequence](200, 512, is_unified=True)
    for slot, prompt in enumerate((30, 7, 250)):
        admit(scheduler, slot, prompt)
    trace = [run(scheduler) for _ in range(3)]
    assert trace == ["p0:0-30 p1:0-7 p2:0-122", "d0,1", "p2:122-250"]


def test_a_second_prompt_of_a_pool_takes_no_more_than_the_first_left() -> None:
    scheduler = Scheduler[Sequence](2048, 512, is_unified=True)
    admit(scheduler, 0, prompt=535)
    admit(scheduler, 1, prompt=2000)
    trace = [run(scheduler) for _ in range(3)]
    assert trace == ["p0:0-535 p1:0-1488", "d0", "p1:1488-2000"]


# who is next


def names(scheduler: Scheduler[Sequence]) -> list[str]:
    """Who would start, in order, if everybody could."""
    order = []
    for sequence in scheduler.candidates():
        order.append(sequence.caller)
        scheduler.start(sequence, len(order), 0)
    return order


def wait_for(scheduler: Scheduler[Sequence], *callers: str, rank: int = 0) -> None:
    for caller in callers:
        scheduler.enqueue(Sequence(prompt_size=4, caller=caller, rank=rank))


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


# how much


def test_while_someone_runs_a_chunk_is_as_long_as_a_step_may_take() -> None:
    scheduler = Scheduler[Sequence](512, 512, max_step_ms=100)
    admit(scheduler, 0, prompt=4)
    run(scheduler)
    scheduler.measured(100, 0.08)  # 0.8 ms a token
    admit(scheduler, 1, prompt=1000)
    assert [run(scheduler) for _ in range(4)] == ["d0", "p1:0-104", "d0", "p1:104-232"]


def test_while_nobody_runs_a_chunk_is_a_full_batch() -> None:
    scheduler = Scheduler[Sequence](512, 512, max_step_ms=100)
    scheduler.measured(100, 0.2)
    admit(scheduler, 0, prompt=1000)
    assert run(scheduler) == "p0:0-488", "and what remains is whole tiles"


def test_however_slow_the_machine_a_chunk_is_a_tile_at_least() -> None:
    scheduler = Scheduler[Sequence](512, 512, max_step_ms=1)
    scheduler.measured(100, 100.0)
    admit(scheduler, 0, prompt=4)
    run(scheduler)
    assert scheduler.budget == 64


def test_before_anything_is_measured_nobody_is_held_up_for_two_tiles() -> None:
    scheduler = Scheduler[Sequence](2048, 512, max_step_ms=100)
    admit(scheduler, 0, prompt=4)
    run(scheduler)
    admit(scheduler, 1, prompt=2000)
    assert [run(scheduler) for _ in range(3)] == ["d0", "p1:0-80", "d0"]


def test_the_speed_follows_what_is_measured_and_a_few_tokens_tell_nothing() -> None:
    scheduler = Scheduler[Sequence](10_000, 512, max_step_ms=100)
    admit(scheduler, 0, prompt=4)
    run(scheduler)
    scheduler.measured(1000, 0.1)
    assert scheduler.budget == 1000
    scheduler.measured(2, 1.0)
    assert scheduler.budget == 1000
    for _ in range(40):
        scheduler.measured(1000, 0.4)
    assert scheduler.budget == 250


def test_a_prefill_pauses_where_a_snapshot_is_due() -> None:
    scheduler = Scheduler[Sequence](100, 50)
    sequence = Sequence(prompt_size=60, stops=(20, 45))
    scheduler.enqueue(sequence)
    scheduler.start(sequence, 0, 0)
    assert [run(scheduler) for _ in range(3)] == ["p0:0-20", "p0:20-45", "p0:45-60"]


@given(st.integers(2, 5000), st.integers(64, 2048), st.integers(0, 600))
def test_a_chunk_fits_the_batch_and_leaves_no_odd_tile(
    prompt: int, batch: int, token_ms: int
) -> None:
    scheduler = Scheduler[Sequence](batch, 512, max_step_ms=600)
    admit(scheduler, 0, prompt=4)
    run(scheduler)
    scheduler.measured(100, token_ms / 10)
    sequence = admit(scheduler, 1, prompt=prompt)
    sizes = []
    while sequence not in scheduler.decoding:
        found = scheduler.next()
        assert found is not None
        sizes += [chunk.stop - chunk.start for chunk in found.chunks]
        scheduler.computed(found)
    assert sum(sizes) == prompt
    assert max(sizes) <= batch
    assert all(size >= min(64, prompt) for size in sizes[1:]) or batch < 128


@given(
    st.lists(st.integers(2, 3000), min_size=1, max_size=6),
    st.sampled_from([8, 32, 64, 128, 200, 256, 512, 2048]),
    st.sampled_from([5, 64, 128, 512]),
    st.integers(0, 600),
    st.booleans(),
    st.booleans(),
)
def test_prompts_together_never_take_more_rows_than_a_batch_has(
    prompts: list[int],
    batch: int,
    pass_size: int,
    token_ms: int,
    is_unified: bool,
    somebody_runs: bool,
) -> None:
    scheduler = Scheduler[Sequence](
        batch, min(pass_size, batch), max_step_ms=600, is_unified=is_unified
    )
    scheduler.measured(100, token_ms / 10)
    if somebody_runs:
        admit(scheduler, len(prompts), prompt=4, cached=4)
    for slot, prompt in enumerate(prompts):
        admit(scheduler, slot, prompt)
    done = [0] * len(prompts)
    while scheduler.prefilling:
        found = scheduler.next()
        assert found is not None
        assert sum(chunk.stop - chunk.start for chunk in found.chunks) <= batch
        for chunk in found.chunks:
            assert done[chunk.sequence.slot] == chunk.start < chunk.stop
            done[chunk.sequence.slot] = chunk.stop
        scheduler.computed(found)
    assert done == prompts


@given(st.lists(st.integers(2, 60), min_size=1, max_size=6), st.integers(8, 40), st.integers(5, 16))
def test_every_prompt_is_computed_once_in_pieces_within_the_budget(
    prompts: list[int], budget: int, pass_size: int
) -> None:
    scheduler = Scheduler[Sequence](budget, pass_size)
    for slot, prompt in enumerate(prompts):
        admit(scheduler, slot, prompt)
    done = dict.fromkeys(range(len(prompts)), 0)
    since_decode = 0
    while done != dict(enumerate(prompts)):
        batch = scheduler.next()
        assert isinstance(batch, Batch)
        if not batch.chunks:
            since_decode = 0
        size = sum(chunk.stop - chunk.start for chunk in batch.chunks)
        assert len({chunk.stop - chunk.start for chunk in batch.chunks}) <= 1
        assert len(batch.chunks) <= 1 or size <= pass_size
        for chunk in batch.chunks:
            assert chunk.start == done[chunk.sequence.slot]
            assert chunk.stop - chunk.start >= 2
            assert (chunk.stop - chunk.start) % pass_size != 1
            done[chunk.sequence.slot] = chunk.stop
        since_decode = since_decode + size if scheduler.decoding else size
        assert since_decode <= budget + 1 or not scheduler.decoding
        scheduler.computed(batch)
    assert [sequence.slot for sequence in scheduler.decoding] == list(range(len(prompts)))

"""What the next batch holds, as traces: sequences come, batches go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.scheduler import Batch, Scheduler, Sequence
from tests.unit.worker.scheduled import admit, run


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


def test_while_nothing_better_is_known_the_fastest_small_pass_tells_the_speed() -> None:
    scheduler = Scheduler[Sequence](10_000, 512, max_step_ms=1000)
    admit(scheduler, 0, prompt=4)
    run(scheduler)
    scheduler.measured(2, 0.1)
    scheduler.measured(40, 0.2)
    scheduler.measured(2, 0.1)
    assert scheduler.budget == 200
    scheduler.measured(1000, 1.0)
    assert scheduler.budget == 1000, "and what is better known is not mixed with it"


def test_how_long_the_prompts_that_began_will_take() -> None:
    scheduler = Scheduler[Sequence](50, 50)
    admit(scheduler, 0, prompt=200)
    assert scheduler.prefill_s == 0.0, "nobody knows yet"
    scheduler.measured(100, 0.4)
    admit(scheduler, 1, prompt=30)
    scheduler.enqueue(Sequence(prompt_size=1000))
    assert scheduler.prefill_s == pytest.approx(0.92)
    run(scheduler)
    assert scheduler.prefill_s < 0.8


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

"""Slots and what they hold."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.kv import RECOMPUTED, SMALL, Int32s, Slots, common_prefix


def ids(*tokens: int) -> Int32s:
    return np.array(tokens, np.int32)


def held(slots: Slots, slot: int) -> list[int]:
    return slots.tokens(slot).tolist()


def serve(slots: Slots, *prompt: int, answer: tuple[int, ...] = ()) -> tuple[int, int]:
    """Acquire, compute prompt and answer, release."""
    taken = start(slots, *prompt)
    for token in answer:
        slots.append(ids(taken[0]), ids(token))
    slots.release(taken[0])
    return taken


def start(slots: Slots, *prompt: int) -> tuple[int, int]:
    taken = slots.acquire(ids(*prompt))
    assert taken is not None
    slot, kept = taken
    slots.write(slot, ids(*prompt[kept:]))
    return taken


def test_a_first_prompt_gets_an_empty_slot() -> None:
    assert Slots(4, 16).acquire(ids(1, 2, 3)) == (0, 0)


def test_prompts_at_once_get_neighbouring_slots() -> None:
    slots = Slots(4, 16)
    assert [start(slots, n, n, n)[0] for n in range(4)] == [0, 1, 2, 3]


def test_while_others_run_a_neighbour_is_better_than_a_short_prefix_far_away() -> None:
    slots = Slots(8, 32)
    for n in range(8):
        start(slots, n, n, n, n)
    for slot in range(8):
        slots.release(slot)
    assert [start(slots, n, n, n, n)[0] for n in (3, 7, 0)] == [3, 2, 1]


def test_a_long_prefix_is_worth_a_gap_and_a_long_history_is_not_lost_to_be_near() -> None:
    slots = Slots(4, 2 * SMALL)
    far, near = range(1000, 1000 + SMALL + 9), range(5000, 5000 + SMALL + 9)
    assert [start(slots, n, n)[0] for n in (0, 1)] == [0, 1]
    assert start(slots, *near)[0] == 2
    assert start(slots, *far)[0] == 3
    for slot in (1, 2, 3):
        slots.release(slot)
    assert start(slots, *far, 7)[0] == 3
    assert start(slots, 9, 9)[0] == 1
    assert held(slots, 2) == [*near]


def test_there_is_no_slot_while_all_are_taken() -> None:
    slots = Slots(1, 16)
    start(slots, 1, 2, 3)
    assert not slots.has_free
    assert slots.acquire(ids(9, 9)) is None


def test_a_continued_conversation_finds_its_tokens() -> None:
    slots = Slots(3, 32)
    serve(slots, 1, 2, 3, answer=(4, 5))
    serve(slots, 7, 8, 9)
    assert slots.acquire(ids(1, 2, 3, 4, 5, 6, 7)) == (0, 5)
    assert held(slots, 0) == [1, 2, 3, 4, 5]


def test_the_same_prompt_again_keeps_all_but_its_end() -> None:
    slots = Slots(2, 32)
    serve(slots, *range(10), answer=(50, 51))
    assert slots.acquire(ids(*range(10))) == (0, 10 - RECOMPUTED)


def test_a_few_common_tokens_do_not_cost_another_conversation_its_cache() -> None:
    slots = Slots(2, 64)
    serve(slots, 1, 2, *range(10, 30))
    assert serve(slots, 1, 2, *range(40, 60)) == (1, 0)
    assert held(slots, 0) == [1, 2, *range(10, 30)]


def test_without_an_empty_slot_the_longest_idle_one_goes_but_its_prefix_is_used() -> None:
    slots = Slots(2, 64)
    serve(slots, 1, 2, *range(10, 30))
    serve(slots, 5, 6, *range(40, 60))
    assert slots.acquire(ids(1, 2, *range(70, 90))) == (0, 2)


def test_a_prompt_reused_moments_ago_is_not_the_one_to_go() -> None:
    slots = Slots(2, 64)
    serve(slots, *range(10))
    serve(slots, *range(20, 30))
    serve(slots, *range(12))
    assert serve(slots, *range(40, 50))[0] == 1


def test_a_slot_in_use_is_no_cache() -> None:
    slots = Slots(2, 32)
    start(slots, *range(8))
    assert slots.acquire(ids(*range(8))) == (1, 0)


def test_a_cleared_slot_holds_nothing() -> None:
    slots = Slots(1, 32)
    serve(slots, 1, 2, 3)
    slots.clear(0)
    assert slots.acquire(ids(1, 2, 3)) == (0, 0)


def test_memory_that_cannot_be_cut_serves_only_what_continues_all_of_it() -> None:
    slots = Slots(1, 32, can_trim=False)
    serve(slots, *range(10))
    assert slots.acquire(ids(*range(8), 50, 51)) == (0, 0)
    slots.write(0, ids(*range(10)))
    slots.release(0)
    assert slots.acquire(ids(*range(10), 60, 61)) == (0, 10)


def test_appending_writes_one_token_in_each_slot() -> None:
    slots = Slots(3, 8)
    for n in range(3):
        start(slots, n, n)
    slots.append(ids(0, 2), ids(7, 8))
    assert [held(slots, n) for n in range(3)] == [[0, 0, 7], [1, 1], [2, 2, 8]]


def test_a_gap_between_running_slots_is_bridged() -> None:
    slots = Slots(4, 600)
    for n in range(4):
        start(slots, n, n)
    slots.release(1)
    assert slots.bridges([0, 2, 3], widest=2, cells=600) == [1]
    assert slots.bridges([2, 3], widest=2, cells=600) == []


def test_a_wide_gap_costs_more_rows_than_a_pass() -> None:
    slots = Slots(5, 600)
    for n in range(5):
        start(slots, n, n)
    for n in (1, 2, 3):
        slots.release(n)
    assert slots.bridges([0, 4], widest=2, cells=600) == []
    assert slots.bridges([0, 4], widest=3, cells=600) == [1, 2, 3]


def test_a_gap_is_not_bridged_over_more_cells_than_the_running_hold() -> None:
    slots = Slots(3, 600)
    for n in range(3):
        start(slots, n, n)
    slots.write(1, np.arange(400, dtype=np.int32))
    slots.release(1)
    assert slots.bridges([0, 2], widest=2, cells=600) == []


def test_a_gap_holding_a_prompt_in_progress_is_not_bridged() -> None:
    slots = Slots(3, 600)
    for n in range(3):
        start(slots, n, n)
    assert slots.bridges([0, 2], widest=2, cells=600) == []


def test_a_full_slot_has_no_cell_for_a_bridge() -> None:
    slots = Slots(3, 256)
    for n in range(3):
        start(slots, *([n] * 250))
    slots.write(1, ids(*range(6)))
    slots.release(1)
    assert slots.bridges([0, 2], widest=2, cells=256) == []


tokens = st.lists(st.integers(0, 2), max_size=12)


@given(tokens, tokens)
def test_a_common_prefix_is_common_and_longest(left: list[int], right: list[int]) -> None:
    size = common_prefix(ids(*left), ids(*right))
    assert left[:size] == right[:size]
    assert size == min(len(left), len(right)) or left[size] != right[size]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(0, 3)),
        max_size=30,
    ),
    st.booleans(),
)
def test_what_is_kept_is_always_a_true_prefix_and_never_the_whole_prompt(
    requests: list[tuple[list[int], int]], can_trim: bool
) -> None:
    slots = Slots(3, 16, can_trim=can_trim)
    running: list[int] = []
    for prompt, wish in requests:
        if wish < len(running):
            slots.release(running.pop(wish))
        before = [held(slots, n) for n in range(3)]
        taken = slots.acquire(ids(*prompt))
        if taken is None:
            assert len(running) == 3
            continue
        slot, kept = taken
        assert slot not in running
        assert before[slot][:kept] == prompt[:kept]
        assert kept <= max(len(prompt) - RECOMPUTED, 0)
        assert can_trim or kept in (0, len(before[slot]))
        slots.write(slot, ids(*prompt[kept:]))
        assert held(slots, slot) == prompt
        running.append(slot)

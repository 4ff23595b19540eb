"""Who gets which sequence, with how much of the prompt already in it, through the memory that
carries it out: a simulated one, so that what the books say can be compared with what is there."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuron.worker import kv as kv_module
from neuron.worker import pool as pool_module
from neuron.worker import slots as slots_module
from neuron.worker.host_cache import HostCache
from neuron.worker.kv import RECOMPUTED, SMALL, Placement, Wait
from neuron.worker.tile import TILE, Tile
from tests.unit.worker.cached import LONG, Cache, ids, place
from tests.unit.worker.simulated_context import SimulatedContext

# the partitioned layout


def test_a_first_prompt_gets_an_empty_slot() -> None:
    assert place(Cache(4, 16).acquire([1, 2, 3])) == (0, 0)


def test_prompts_at_once_get_neighbouring_slots() -> None:
    cache = Cache(4, 16)
    assert [cache.start(n, n, n).sequence for n in range(4)] == [0, 1, 2, 3]


def test_while_others_run_a_neighbour_is_better_than_a_short_prefix_far_away() -> None:
    cache = Cache(8, 32)
    for n in range(8):
        cache.start(n, n, n, n)
    for slot in range(8):
        cache.kv.release(slot)
    assert [cache.start(n, n, n, n).sequence for n in (3, 7, 0)] == [3, 2, 1]


def test_a_long_prefix_is_worth_a_gap_and_a_long_history_is_not_lost_to_be_near() -> None:
    cache = Cache(4, 2 * SMALL)
    far, near = range(1000, 1000 + SMALL + 9), range(5000, 5000 + SMALL + 9)
    assert [cache.start(n, n).sequence for n in (0, 1)] == [0, 1]
    assert cache.start(*near).sequence == 2
    assert cache.start(*far).sequence == 3
    for slot in (1, 2, 3):
        cache.kv.release(slot)
    assert cache.start(*far, 7).sequence == 3
    assert cache.start(9, 9).sequence == 1
    assert cache.held(2) == [*near]


def test_there_is_no_slot_while_all_are_taken() -> None:
    cache = Cache(1, 16)
    cache.start(1, 2, 3)
    assert not cache.kv.has_free
    assert cache.acquire([9, 9]) is None


def test_a_continued_conversation_finds_its_tokens() -> None:
    cache = Cache(3, 32)
    cache.serve(1, 2, 3, answer=(4, 5))
    cache.serve(7, 8, 9)
    placement = cache.acquire([1, 2, 3, 4, 5, 6, 7])
    assert place(placement) == (0, 5)
    assert isinstance(placement, Placement)
    assert placement.source == "cache"
    assert cache.held(0) == [1, 2, 3, 4, 5]


def test_the_same_prompt_again_keeps_all_but_its_end() -> None:
    cache = Cache(2, 32)
    cache.serve(*range(10), answer=(50, 51))
    assert place(cache.acquire([*range(10)])) == (0, 10 - RECOMPUTED)


def test_a_few_common_tokens_do_not_cost_another_conversation_its_cache() -> None:
    cache = Cache(2, 64)
    cache.serve(1, 2, *range(10, 30))
    assert place(cache.serve(1, 2, *range(40, 60))) == (1, 0)
    assert cache.held(0) == [1, 2, *range(10, 30)]


def test_without_an_empty_slot_the_longest_idle_one_goes_but_its_prefix_is_used() -> None:
    cache = Cache(2, 64)
    cache.serve(1, 2, *range(10, 30))
    cache.serve(5, 6, *range(40, 60))
    assert place(cache.acquire([1, 2, *range(70, 90)])) == (0, 2)


def test_a_prompt_reused_moments_ago_is_not_the_one_to_go() -> None:
    cache = Cache(2, 64)
    cache.serve(*range(10))
    cache.serve(*range(20, 30))
    cache.serve(*range(12))
    assert cache.serve(*range(40, 50)).sequence == 1


def test_a_long_prefix_of_a_running_sequence_is_copied() -> None:
    cache = Cache(2, 2048)
    cache.start(*LONG, 1, 2, 3)
    placement = cache.start(*LONG, 7, 8, 9)
    assert (placement.sequence, placement.cached, placement.source) == (1, len(LONG), "live")
    assert cache.held(1) == [*LONG, 7, 8, 9]


def test_a_short_prefix_of_a_running_sequence_is_computed_again() -> None:
    cache = Cache(2, 64)
    cache.start(*range(8))
    assert place(cache.acquire([*range(8)])) == (1, 0)


def test_a_system_prompt_leaves_the_conversation_that_had_it_alone() -> None:
    cache = Cache(3, 4096)
    first = range(5000, 5000 + 2 * SMALL)
    cache.serve(*LONG, *first)
    placement = cache.start(*LONG, 1, 2, 3)
    assert (placement.sequence, placement.cached, placement.source) == (1, len(LONG), "cache")
    assert cache.held(0) == [*LONG, *first]


def test_a_cleared_slot_holds_nothing() -> None:
    cache = Cache(1, 32)
    cache.serve(1, 2, 3)
    cache.memory.drop(0)
    assert place(cache.acquire([1, 2, 3])) == (0, 0)


def test_appending_writes_one_token_in_each_slot() -> None:
    cache = Cache(3, 8)
    for n in range(3):
        cache.start(n, n)
    cache.kv.append(ids(0, 2), ids(7, 8))
    assert [cache.kv.tokens(n).tolist() for n in range(3)] == [[0, 0, 7], [1, 1], [2, 2, 8]]


# a prefix on its way


def test_a_prefix_that_another_is_prefilling_is_waited_for_and_then_shared() -> None:
    cache = Cache(2, 2048)
    first = cache.acquire([*LONG, 1, 2, 3])
    assert isinstance(first, Placement)
    cache.compute(0, [*LONG[:100]])
    wait = cache.acquire([*LONG, 7, 8, 9])
    assert isinstance(wait, Wait)
    assert (wait.sequence, wait.length) == (0, len(LONG))
    assert cache.kv.is_on_its_way(wait)
    cache.compute(0, [*LONG[100:], 1, 2, 3])
    assert not cache.kv.is_on_its_way(wait)
    assert cache.start(*LONG, 7, 8, 9).cached == len(LONG)


def test_nobody_waits_for_a_prefill_that_was_cancelled() -> None:
    cache = Cache(2, 2048)
    cache.acquire([*LONG])
    wait = cache.acquire([*LONG, 7])
    assert isinstance(wait, Wait)
    cache.kv.release(0)
    assert not cache.kv.is_on_its_way(wait)
    assert cache.start(*LONG, 7).cached == 0


def test_nobody_waits_for_a_prefill_of_lower_rank() -> None:
    cache = Cache(2, 2048)
    cache.acquire([*LONG], rank=1)
    assert place(cache.acquire([*LONG, 7], rank=0)) == (1, 0)
    cache.kv.release(1)
    assert isinstance(cache.acquire([*LONG, 7], rank=1), Wait)


def test_a_short_prefix_on_its_way_is_not_waited_for() -> None:
    cache = Cache(2, 64)
    cache.acquire([*range(20)])
    assert place(cache.acquire([*range(20)])) == (1, 0)


# tiles

ALL_ATTENTION = Tile(0.0)


@pytest.mark.parametrize("pool", [0, 4096])
def test_cached_tokens_are_computed_again_to_fill_a_tile(pool: int) -> None:
    cache = Cache(2, 2048, pool=pool, tile=ALL_ATTENTION)
    cache.serve(*LONG)
    more = [*LONG, *range(40)]
    placement = cache.acquire(more)
    assert isinstance(placement, Placement)
    assert (placement.cached, placement.source) == (len(more) - TILE, "cache")
    assert cache.held(placement.sequence) == more[: placement.cached]


def test_a_prefix_of_one_that_runs_is_shared_but_for_a_tile() -> None:
    cache = Cache(2, 2048, tile=ALL_ATTENTION)
    cache.start(*LONG, 1)
    more = [*LONG, *range(40)]
    placement = cache.acquire(more)
    assert isinstance(placement, Placement)
    assert (placement.cached, placement.source) == (len(more) - TILE, "live")


def test_what_comes_back_from_the_host_is_cut_to_fill_a_tile() -> None:
    cache = Cache(1, 2048, host=HostCache(10**6), tile=ALL_ATTENTION)
    cache.serve(*LONG)
    cache.serve(*range(5000, 5600))
    more = [*LONG, *range(40)]
    placement = cache.acquire(more)
    assert isinstance(placement, Placement)
    assert (placement.cached, placement.source) == (len(more) - TILE, "host")
    assert cache.held(placement.sequence) == more[: placement.cached]


# host memory


def test_what_makes_way_is_parked_and_comes_back() -> None:
    cache = Cache(1, 2048, host=HostCache(10**6))
    cache.serve(*LONG, answer=(1, 2, 3))
    cache.serve(*range(5000, 5100))
    placement = cache.start(*LONG, 1, 2, 3, 4, 5, 6)
    assert (placement.cached, placement.source) == (len(LONG) + 3, "host")
    assert cache.held(0) == [*LONG, 1, 2, 3, 4, 5, 6]


def test_two_conversations_alternating_in_one_slot_recompute_nothing() -> None:
    cache = Cache(1, 4096, host=HostCache(10**6))
    talks = [[*range(1000, 1200)], [*range(3000, 3200)]]
    for turn in range(6):
        for talk in talks:
            talk += [*range(10_000 + 100 * turn, 10_100 + 100 * turn)]
            placement = cache.serve(*talk, answer=(90, 91, turn))
            assert turn == 0 or len(talk) - placement.cached == 100
            talk += [90, 91, turn]


def test_a_short_tail_is_computed_again_rather_than_parked_with_all_before_it() -> None:
    host = HostCache(10**6)
    cache = Cache(2, 4096, host=host)
    cache.serve(*LONG, *range(20))
    cache.serve(*LONG, *range(50, 70))
    cache.serve(*range(5000, 5600))
    assert host.bytes == 0
    cache.serve(*range(7000, 7600))
    assert host.bytes > 0, "the last one that had the long prefix"


def test_a_parked_copy_that_cannot_be_read_is_a_miss_and_is_thrown_away() -> None:
    host = HostCache(10**6)
    cache = Cache(1, 2048, host=host)
    cache.serve(*LONG)
    cache.serve(*range(5000, 5100))
    cache.context.fails_to_restore = True
    placement = cache.start(*LONG, 7)
    assert (placement.cached, placement.source, placement.miss) == (0, "none", "unusable")
    assert cache.held(0) == [*LONG, 7]
    assert host.find("", ids(*LONG), whole=False) is None


def test_what_another_sequence_has_too_is_not_parked() -> None:
    host = HostCache(10**6)
    cache = Cache(2, 2048, host=host)
    cache.serve(*LONG)
    cache.serve(*LONG, *range(400))
    cache.serve(*range(5000, 5600))
    assert host.bytes == 0


def test_on_unload_everything_that_ended_is_parked() -> None:
    host = HostCache(10**6)
    cache = Cache(3, 2048, host=host)
    for n in range(3):
        cache.serve(*range(1000 * n, 1000 * n + 100))
    cache.memory.park_all()
    later = Cache(1, 2048, host=host)
    for n in range(3):
        assert later.serve(*range(1000 * n, 1000 * n + 100), 7, 8, 9).source == "host"


# why nothing was found


@pytest.mark.parametrize(
    ("prompt", "miss"),
    [([1, 2, 3], "short"), ([*range(100)], "unseen"), ([*LONG, 1, 2], "evicted")],
)
def test_a_miss_says_why(prompt: list[int], miss: str) -> None:
    cache = Cache(1, 2048)
    cache.serve(*LONG)
    cache.serve(*range(7000, 7100))
    assert cache.start(*prompt).miss == miss


def test_the_first_prompt_of_all_finds_an_empty_cache() -> None:
    assert Cache(1, 2048).start(*LONG).miss == "empty"


# memory that cannot be cut


def test_memory_that_cannot_be_cut_serves_only_what_continues_all_of_it() -> None:
    cache = Cache(1, 128, can_trim=False)
    cache.serve(*range(50))
    placement = cache.start(*range(48), 50, 51)
    assert (placement.cached, placement.miss) == (0, "uncuttable")
    cache.kv.release(0)
    assert place(cache.acquire([*range(48), 50, 51, 60, 61])) == (0, 50)


def test_a_snapshot_at_a_turn_boundary_serves_those_who_part_after_it() -> None:
    cache = Cache(1, 128, can_trim=False, host=HostCache(10**6))
    placement = cache.acquire([*range(50)], stops=(40,))
    assert isinstance(placement, Placement)
    cache.compute(0, [*range(40)])
    cache.memory.snapshot(0)
    cache.compute(0, [*range(40, 50)])
    cache.kv.release(0)
    placement = cache.start(*range(40), 90, 91, 92)
    assert (placement.cached, placement.source) == (40, "host")
    assert cache.held(0) == [*range(40), 90, 91, 92]


def test_of_memory_that_cannot_be_cut_only_a_snapshot_is_waited_for() -> None:
    prompt = [*range(1000, 1400)]
    cache = Cache(2, 2048, can_trim=False, host=HostCache(10**6))
    cache.acquire(prompt, stops=(300,))
    wait = cache.acquire([*prompt[:350], 1, 2])
    assert isinstance(wait, Wait)
    assert wait.length == 300
    assert place(cache.acquire([*prompt[:200], 1, 2])) == (1, 0)


# anything


requests = st.tuples(
    st.lists(st.integers(0, 1), min_size=1, max_size=20),  # prompt
    st.integers(0, 4),  # which running one ends first, if so many run
    st.integers(0, 12),  # tokens the new one generates at once
    st.integers(0, 20),  # prompt tokens computed at once
    st.integers(0, 7),  # whose cells behind its window are written over, if it has one
)


@given(
    st.lists(requests, max_size=30),
    st.sampled_from([(0, True, 0), (0, False, 0), (50, True, 0), (200, True, 0), (60, True, 4)]),
    st.sampled_from([0, 150, 10**6]),
    st.sampled_from([0, 20, 60, 300]),
)
@example(
    [([0] * 8, 0, 0, 8, 0)], (50, True, 0), 10**6, 60
)  # what was parked is longer than the pool
def test_whatever_comes_the_books_agree_with_the_memory(
    trace: list[tuple[list[int], int, int, int, int]],
    layout: tuple[int, bool, int],
    budget: int,
    parked: int,
) -> None:
    pool, can_trim, window = layout
    with (
        patch.object(kv_module, "WORTH", 3),
        patch.multiple(slots_module, SMALL=6, WORTH=3, _COPY_WORTH=4),
        patch.multiple(pool_module, WORTH=3, _MARGIN=2),
    ):
        host = HostCache(budget)
        cache = Cache(3, 32, pool=pool, can_trim=can_trim, window=window, host=host)
        before = SimulatedContext(window=window)  # of the model when it had another context
        before.write(0, np.zeros(parked, np.int32))
        host.put("", np.zeros(parked, np.int32), before.save(0))
        running: dict[int, list[int]] = {}
        for prompt, leaver, answer, computed, written_over in trace:
            cache.context.write_over(written_over)
            if leaver < len(running):
                leaving = [*running][leaver]
                cache.kv.release(leaving)
                del running[leaving]
            stops = () if can_trim else (len(prompt) // 2,)
            placement = cache.acquire(prompt, stops=stops)
            if isinstance(placement, Wait):
                assert placement.sequence in running
                assert running[placement.sequence][: placement.length] == prompt[: placement.length]
                continue
            if placement is None:
                assert len(running) == 3 or (running and pool in (50, 60))
                continue
            sequence, cached = place(placement)
            assert sequence not in running
            assert cache.held(sequence) == prompt[:cached]
            assert cache.context.holds(sequence, cached)
            assert cached <= max(len(prompt) - RECOMPUTED, 0)
            assert (placement.source == "none") == (cached == 0) == bool(placement.miss)
            running[sequence] = prompt
            cache.compute(sequence, prompt[cached : cached + computed])
            if cached + computed >= len(prompt):
                for token in range(answer):
                    if not cache.memory.make_room(1):
                        break
                    cache.generate(sequence, token % 2)
            for each in range(len(cache.kv.lengths)):
                cache.held(each)
            for entry in host._entries:
                assert len(entry.data) == 8 * len(entry.tokens)
            assert cache.kv.cells_used == cache.context.used
            assert cache.kv.cells_running <= cache.kv.cells_used
            assert host.bytes <= budget
        for sequence in running:
            cache.kv.release(sequence)
        assert cache.kv.cells_running == 0
        cache.memory.park_all()
        assert cache.kv.cells_used == cache.context.used == 0
        assert not len(cache.kv._tree)

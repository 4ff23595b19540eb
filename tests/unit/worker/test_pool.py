"""One pool of cells: what sequences share, who is evicted, and who waits for room."""

from __future__ import annotations

import numpy as np
import pytest

from neuron.worker.host_cache import HostCache
from neuron.worker.kv import Placement, Wait
from tests.unit.worker.cached import LONG, Cache, ids


def test_a_prefix_is_shared_and_its_cells_count_once() -> None:
    cache = Cache(4, 1024, pool=1024)
    cache.start(*range(100), 1, 2)
    placement = cache.start(*range(100), 7, 8)
    assert (placement.cached, placement.source) == (100, "live")
    assert cache.kv.cells_used == cache.context.used == 104
    assert cache.kv.cells_running == 104


def test_more_than_may_run_stay_as_cache() -> None:
    cache = Cache(1, 256, pool=256)
    for n in range(4):
        cache.serve(*range(100 * n, 100 * n + 40))
    assert cache.kv.cells_used == 160
    for n in range(4):
        assert cache.serve(*range(100 * n, 100 * n + 40), 7, 8, 9).source == "cache"


def test_a_prompt_without_room_waits_and_evicts_nothing() -> None:
    cache = Cache(2, 100, pool=160)
    cache.serve(*range(20))
    cache.start(*range(500, 580))
    assert cache.acquire([*range(700, 790)]) is None
    assert [*range(20)] in [cache.held(each) for each in range(8)]


def test_the_longest_idle_is_evicted_for_a_prompt_that_needs_its_cells() -> None:
    cache = Cache(1, 100, pool=100)
    for n in range(3):
        cache.serve(*range(100 * n, 100 * n + 30))
    cache.start(*range(700, 735))
    left = [cache.held(each) for each in range(8)]
    assert [[*range(100 * n, 100 * n + 30)] in left for n in range(3)] == [False, True, True]


@pytest.mark.parametrize("size", [10, 100])  # beside what is put aside, or in its place
def test_what_cannot_be_put_aside_is_neither_on_the_books_nor_parked(size: int) -> None:
    host = HostCache()
    cache = Cache(1, 128, pool=128, window=8, host=host)
    lost = cache.serve(*range(100)).sequence
    for cell in cache.context.cells[lost]:
        cell.is_written_over = True
    assert cache.start(*range(200, 200 + size)).miss != "unusable"
    assert [each for each in range(8) if cache.held(each)] == [lost]
    assert cache.kv.cells_used == size
    assert host.find("", ids(*range(100)), whole=False) is None


def test_who_cannot_share_what_was_written_over_waits_for_room_of_its_own() -> None:
    cache = Cache(2, 256, pool=256, window=8)
    first = cache.start(*range(150)).sequence
    cache.generate(first, *range(20))
    cache.context.write_over(first)
    prompt = [*range(150), 7, 8]
    assert cache.acquire(prompt) is None
    cache.kv.release(first)
    second = cache.start(*prompt)
    assert (second.cached, second.miss) == (0, "unusable")
    assert cache.held(second.sequence) == prompt


def test_growing_evicts_what_has_ended_and_then_says_that_there_is_no_room() -> None:
    cache = Cache(2, 60, pool=60)
    cache.serve(*range(20))
    running = cache.start(*range(100, 130)).sequence
    cache.generate(running, *range(10))
    assert cache.memory.make_room(1)
    assert cache.kv.cells_used == cache.kv.cells_running == 40
    cache.generate(running, *range(20))
    assert not cache.memory.make_room(1)


def test_a_suspended_sequence_goes_on_where_it_was() -> None:
    host = HostCache(0)
    cache = Cache(2, 200, pool=200, host=host)
    cache.start(*range(50))
    cache.generate(0, 7, 8, 9)
    tokens = ids(*cache.held(0))
    parked = cache.memory.suspend(0, tokens)
    assert cache.context.used == cache.kv.cells_used == 0
    placement = cache.acquire(tokens.tolist(), needs_logits=False)
    assert isinstance(placement, Placement)
    assert (placement.cached, placement.source) == (53, "host")
    assert cache.held(placement.sequence) == tokens.tolist()
    assert parked is not None
    host.drop(parked)
    assert host.size("") == 0


def test_what_was_parked_is_no_reason_to_wait_where_the_prompt_alone_has_room() -> None:
    host = HostCache()
    host.put("", ids(*LONG), np.zeros(10, np.uint8))
    prompt = [*LONG[:100], 7, 8, 9]
    for pool, others in ((256, 0), (len(LONG), 200)):  # it never fits; it does not fit now
        cache = Cache(2, 256, pool=pool, host=host)
        if others:
            cache.start(*range(others))
        placement = cache.acquire(prompt)
        assert isinstance(placement, Placement)
        assert (placement.cached, placement.miss) == (0, "unusable")
    assert host.size("") == 10, "it may fit the next prompt"


def test_a_prefix_on_its_way_is_waited_for_where_what_was_parked_has_no_room() -> None:
    host = HostCache()
    host.put("", ids(*LONG), np.zeros(10, np.uint8))
    cache = Cache(2, 400, pool=500, host=host)
    first = cache.acquire([*LONG[:300], 7])
    assert isinstance(first, Placement)
    assert isinstance(cache.acquire([*LONG[:300], 8]), Wait)

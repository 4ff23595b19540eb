"""Which idle sequences get a row so that those around them are computed in one pass."""

from __future__ import annotations

from tests.unit.worker.cached import Cache


def test_a_gap_between_running_slots_is_bridged() -> None:
    cache = Cache(4, 600)
    for n in range(4):
        cache.start(n, n)
    cache.kv.release(1)
    assert cache.kv.bridges([0, 2, 3], widest=2, cells=600) == [1]
    assert cache.kv.bridges([2, 3], widest=2, cells=600) == []


def test_a_wide_gap_costs_more_rows_than_a_pass() -> None:
    cache = Cache(5, 600)
    for n in range(5):
        cache.start(n, n)
    for n in (1, 2, 3):
        cache.kv.release(n)
    assert cache.kv.bridges([0, 4], widest=2, cells=600) == []
    assert cache.kv.bridges([0, 4], widest=3, cells=600) == [1, 2, 3]


def test_a_gap_is_not_bridged_over_more_cells_than_the_running_hold() -> None:
    cache = Cache(3, 600)
    for n in range(3):
        cache.start(n, n)
    cache.compute(1, [*range(400)])
    cache.kv.release(1)
    assert cache.kv.bridges([0, 2], widest=2, cells=600) == []


def test_a_gap_holding_a_prompt_in_progress_is_not_bridged() -> None:
    cache = Cache(3, 600)
    for n in range(3):
        cache.start(n, n)
    assert cache.kv.bridges([0, 2], widest=2, cells=600) == []


def test_a_full_slot_has_no_cell_for_a_bridge() -> None:
    cache = Cache(3, 256)
    for n in range(3):
        cache.start(*([n] * 250))
    cache.compute(1, [*range(6)])
    cache.kv.release(1)
    assert cache.kv.bridges([0, 2], widest=2, cells=256) == []


def test_sequences_of_one_pool_have_no_gaps() -> None:
    cache = Cache(4, 64, pool=256)
    for n in range(4):
        cache.start(n, n)
    cache.kv.release(1)
    assert cache.kv.bridges([0, 2, 3], widest=2, cells=256) == []

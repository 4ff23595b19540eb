"""Which texts go into a pass: every text once, no pass too full, no request left behind."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.passes import Passes

ROWS, TEXTS = 16, 4
REQUESTS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), max_size=8)


def _passes(requests: list[list[int]]) -> list[list[tuple[int, int]]]:
    passes = Passes(ROWS, TEXTS)
    for request, sizes in enumerate(requests):
        passes.add(request, sizes)
    made = []
    while chosen := passes.next():
        made.append(chosen)
    assert passes.waiting == 0
    return made


@given(REQUESTS)
def test_every_text_is_computed_exactly_once(requests: list[list[int]]):
    chosen = [choice for made in _passes(requests) for choice in made]
    expected = [(r, t) for r, sizes in enumerate(requests) for t in range(len(sizes))]
    assert sorted(chosen) == expected


@given(REQUESTS)
def test_no_pass_is_too_full_and_a_long_text_is_alone(requests: list[list[int]]):
    for chosen in _passes(requests):
        sizes = [requests[request][index] for request, index in chosen]
        assert len(chosen) <= TEXTS
        assert sum(sizes) <= ROWS or len(chosen) == 1


@given(REQUESTS)
def test_every_request_gets_its_turn_within_a_round(requests: list[list[int]]):
    """Of a request that waits, no `len(requests)` passes in a row hold nothing."""
    left = {request: len(sizes) for request, sizes in enumerate(requests)}
    unserved = dict.fromkeys(left, 0)
    for chosen in _passes(requests):
        served = {request for request, _ in chosen}
        for request in [request for request, count in left.items() if count]:
            unserved[request] = 0 if request in served else unserved[request] + 1
            assert unserved[request] < len(requests)
        for request, _ in chosen:
            left[request] -= 1


@given(st.lists(st.integers(1, ROWS), min_size=1, max_size=20))
def test_no_two_passes_in_a_row_would_have_fitted_into_one(sizes: list[int]):
    made = [[sizes[index] for _, index in chosen] for chosen in _passes([sizes])]
    for one, two in pairwise(made):
        assert sum(one) + sum(two) > ROWS or len(one) + len(two) > TEXTS


def test_short_texts_of_all_requests_share_a_pass():
    assert _passes([[4], [5], [6]]) == [[(0, 0), (1, 0), (2, 0)]]


def test_a_request_of_one_text_does_not_wait_for_a_thousand():
    passes = Passes(ROWS, TEXTS)
    passes.add(1, [16] * 1000)
    passes.next()
    passes.add(2, [3])
    chosen = [passes.next() for _ in range(2)]
    assert (2, 0) in chosen[0] + chosen[1]


def test_what_is_left_of_a_removed_request_is_not_computed():
    passes = Passes(ROWS, TEXTS)
    passes.add(1, [16, 16])
    passes.add(2, [16])
    assert passes.next() == [(1, 0)]
    passes.remove(1)
    passes.remove(7)
    assert passes.waiting == 1
    assert passes.next() == [(2, 0)]
    assert passes.next() == []

"""The pool's ledger against cells with the set of sequences that see each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.cells import Cells


def test_shared_cells_count_once_and_are_free_when_nobody_sees_them() -> None:
    cells = Cells(100)
    cells.grow(0, 30)
    cells.share(0, 1, 20)
    cells.grow(1, 5)
    assert (cells.used, cells.length(1)) == (35, 25)
    cells.trim(0, 0)
    assert cells.used == 25
    cells.trim(1, 0)
    assert cells.free == 100


def test_held_by_several_counts_what_they_share_once() -> None:
    cells = Cells(100)
    cells.grow(0, 10)
    cells.share(0, 1, 10)
    cells.grow(1, 3)
    cells.grow(2, 7)
    assert [cells.held_by(who) for who in ([0, 1], [1, 2], [])] == [13, 20, 0]


operations = st.one_of(
    st.tuples(st.just("grow"), st.integers(0, 3), st.integers(0, 9)),
    st.tuples(st.just("share"), st.integers(0, 3), st.integers(0, 20)),
    st.tuples(st.just("trim"), st.integers(0, 3), st.integers(0, 20)),
)


@given(st.lists(operations, max_size=40), st.sets(st.integers(0, 3)))
def test_whatever_is_done_the_count_is_that_of_the_cells(trace: list, some: set[int]) -> None:
    cells = Cells(10_000)
    seen: dict[int, list[int]] = {sequence: [] for sequence in range(4)}
    fresh = iter(range(10_000))
    for what, sequence, number in trace:
        if what == "grow":
            cells.grow(sequence, number)
            seen[sequence] += [next(fresh) for _ in range(number)]
        elif what == "trim":
            cells.trim(sequence, number)
            seen[sequence] = seen[sequence][:number]
        else:
            target = (sequence + 1) % 4
            if seen[target]:
                continue
            length = min(number, len(seen[sequence]))
            cells.share(sequence, target, length)
            seen[target] = seen[sequence][:length]
        assert cells.used == len({cell for held in seen.values() for cell in held})
        assert [cells.length(each) for each in range(4)] == [len(seen[each]) for each in range(4)]
        assert cells.held_by(some) == len({cell for each in some for cell in seen[each]})

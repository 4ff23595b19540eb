"""What is parked, for how long, and what comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuron.worker.host_cache import Bytes, HostCache, Int32s


def ids(*tokens: int) -> Int32s:
    return np.array(tokens, np.int32)


def data(size: int, fill: int = 1) -> Bytes:
    return np.full(size, fill, np.uint8)


def found(cache: HostCache, *tokens: int, whole: bool = False) -> tuple[int, list[int]] | None:
    hit = cache.find("m", ids(*tokens), whole=whole)
    return (hit[0], hit[1].tokens.tolist()) if hit else None


def test_the_longest_common_prefix_is_found() -> None:
    cache = HostCache(100)
    cache.put("m", ids(1, 2, 3), data(10))
    cache.put("m", ids(1, 2, 7, 8), data(10))
    assert found(cache, 1, 2, 7, 9) == (3, [1, 2, 7, 8])
    assert found(cache, 5) is None


def test_only_whole_entries_count_where_memory_cannot_be_cut() -> None:
    cache = HostCache(100)
    cache.put("m", ids(1, 2), data(10))
    cache.put("m", ids(1, 2, 3, 4), data(10))
    assert found(cache, 1, 2, 3, 9, whole=True) == (2, [1, 2])


def test_models_do_not_meet() -> None:
    cache = HostCache(100)
    cache.put("other", ids(1, 2), data(10))
    assert found(cache, 1, 2) is None
    assert (cache.size("other"), cache.size("m")) == (10, 0)


def test_the_least_recently_used_goes_first() -> None:
    cache = HostCache(30)
    for token in (1, 2, 3):
        cache.put("m", ids(token), data(10))
    found(cache, 1)
    cache.put("m", ids(4), data(10))
    assert [found(cache, token) is not None for token in (1, 2, 3, 4)] == [True, False, True, True]
    assert cache.bytes == 30


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    cache = HostCache(10)
    assert cache.put("m", ids(1), data(11)) is None
    assert found(cache, 1) is None


def test_a_smaller_budget_takes_effect_at_once() -> None:
    cache = HostCache(100)
    for token in range(5):
        cache.put("m", ids(token), data(10))
    cache.limit(20)
    assert cache.bytes == 20


def test_a_pinned_entry_is_outside_the_budget_and_stays() -> None:
    cache = HostCache(10)
    pinned = cache.put("m", ids(1, 2), data(50), is_pinned=True)
    assert pinned is not None
    cache.put("m", ids(3), data(10))
    cache.put("m", ids(4), data(10))
    cache.drop_prefixes("m", ids(1, 2, 3))
    assert found(cache, 1, 2) == (2, [1, 2])
    cache.drop(pinned)
    assert found(cache, 1, 2) is None
    assert cache.bytes == 10


def test_a_mere_beginning_of_something_longer_goes() -> None:
    cache = HostCache(100)
    cache.put("m", ids(1, 2), data(10))
    cache.put("m", ids(1, 9), data(10))
    cache.drop_prefixes("m", ids(1, 2, 3))
    assert cache.bytes == 10
    assert found(cache, 1, 2) == (1, [1, 9])


def test_it_tells_how_much_of_some_tokens_it_has() -> None:
    cache = HostCache(100)
    cache.put("m", ids(1, 2, 3), data(10))
    assert cache.shared("m", ids(1, 2), whole=False) == 2
    assert cache.shared("m", ids(1, 2), whole=True) == 0
    assert cache.shared("m", ids(1, 2, 3), whole=True) == 3
    assert cache.shared("m", ids(1, 2, 4), whole=False) == 2
    assert cache.shared("other", ids(1, 2), whole=False) == 0


def test_what_was_saved_comes_back_in_the_order_of_use(tmp_path: Path) -> None:
    cache = HostCache(100)
    for token in (1, 2, 3):
        cache.put("m", ids(token, 9), data(10, token))
    found(cache, 1, 9)
    assert cache.save(tmp_path) == 3
    later = HostCache()
    assert later.restore(tmp_path) == 3
    later.limit(20)
    assert [found(later, token, 9) is not None for token in (1, 2, 3)] == [True, False, True]
    hit = later.find("m", ids(3, 9), whole=True)
    assert hit is not None
    assert hit[1].data.tolist() == [3] * 10
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = HostCache(100)
    cache.put("m", ids(1), data(10))
    cache.save(tmp_path)
    (tmp_path / "000009.sequence").write_bytes(b"\xff\xff\xff\xff broken")
    (tmp_path / "000010.sequence").write_bytes(b"")
    later = HostCache()
    assert later.restore(tmp_path) == 1
    assert capsys.readouterr().err.count("not restored") == 2


def test_a_folder_that_cannot_be_written_costs_the_cache_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = HostCache(100)
    cache.put("m", ids(1), data(10))
    assert cache.save(tmp_path / "missing") == 0
    assert "not saved" in capsys.readouterr().err

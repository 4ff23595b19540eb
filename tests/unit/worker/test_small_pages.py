"""What is parked lies in pages that are found quickly, whatever malloc was told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuron.worker import llama

BYTES = 8 * 2**20
HAS_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()


def flags_at(address: int) -> list[str]:
    """Of the mapping that holds the address; none where nothing does."""
    is_there = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            is_there = start <= address < end
        elif first == "VmFlags:" and is_there:
            return rest
    return []


@pytest.mark.skipif(not HAS_HUGE_PAGES, reason="this kernel has no huge pages")
def test_large_ones_are_in_small_pages_which_go_with_them() -> None:
    data = llama._in_small_pages(BYTES)
    data[:] = 7
    address = data.ctypes.data
    assert "nh" in flags_at(address)
    tail = data[-5:]
    del data
    assert "nh" in flags_at(address), "a view keeps it"
    assert np.all(tail == 7)
    del tail
    assert "nh" not in flags_at(address)


def test_small_ones_have_no_mapping_of_their_own() -> None:
    data = llama._in_small_pages(4096)
    data[:] = 7
    assert "nh" not in flags_at(data.ctypes.data)

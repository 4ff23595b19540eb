"""What is parked lies in pages that are found quickly, whatever malloc was told."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from neuron.worker import llama

BYTES = 8 * 2**20


class Pages(mmap.mmap):
    """Notes what it is advised."""

    advice: list[int]

    def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
        self.advice.append(option)


class Plain(mmap.mmap):
    """As on a kernel that was built without huge pages."""

    def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
        raise OSError(22, "Invalid argument")


def is_mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return True
    return False


def test_large_ones_ask_for_small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    Pages.advice = []
    monkeypatch.setattr(mmap, "mmap", Pages)
    llama._in_small_pages(BYTES)
    assert Pages.advice == [mmap.MADV_NOHUGEPAGE]
    llama._in_small_pages(4096)
    assert len(Pages.advice) == 1, "small ones have no mapping of their own"


def test_a_kernel_without_huge_pages_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "mmap", Plain)
    data = llama._in_small_pages(BYTES)
    data[:] = 7
    assert data.sum(dtype=int) == 7 * BYTES


def test_they_stay_as_long_as_a_view_of_them_and_no_longer() -> None:
    data = llama._in_small_pages(BYTES)
    data[:] = 7
    address = data.ctypes.data
    tail = data[-5:]
    del data
    assert is_mapped(address)
    assert tail.tolist() == [7] * 5
    del tail
    assert not is_mapped(address)

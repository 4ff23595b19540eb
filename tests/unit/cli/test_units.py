from __future__ import annotations

import pytest

from cortex_cli.units import UNKNOWN, count, duration, rate, share, size

KIB, MIB, GIB = 2**10, 2**20, 2**30


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, UNKNOWN),
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (int(2.5 * MIB), "2.5 MiB"),
        (141 * GIB, "141 GiB"),
        (3 * 1024 * GIB, "3.0 TiB"),
    ],
)
def test_sizes_are_binary_with_few_figures(amount: int | None, text: str) -> None:
    assert size(amount) == text


def test_a_share_is_in_the_unit_of_the_total() -> None:
    assert share(GIB, 8 * GIB) == "1.0 / 8.0 GiB"
    assert share(None, 8 * GIB) == f"{UNKNOWN} / 8.0 GiB"
    assert share(None, None) == UNKNOWN


@pytest.mark.parametrize(
    ("time_s", "text"), [(0.0314, "31 ms"), (1.25, "1.2 s"), (99, "99.0 s"), (600, "10 min")]
)
def test_durations(time_s: float, text: str) -> None:
    assert duration(time_s) == text


def test_rates_and_counts() -> None:
    assert [rate(9.96), rate(1234.5), count(8192)] == ["10.0", "1,234", "8,192"]

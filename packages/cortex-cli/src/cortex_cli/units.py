"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["count", "duration", "rate", "share", "size"]

UNKNOWN = "\N{EN DASH}"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(amount_bytes: int | None) -> str:
    """Bytes in the largest binary unit that keeps the number at 1 or more."""
    if amount_bytes is None:
        return UNKNOWN
    scale, unit = _scale(amount_bytes)
    return f"{_figures(amount_bytes / scale, unit)} {unit}"


def share(used_bytes: int | None, total_bytes: int | None) -> str:
    """`1.2 / 8.0 GiB`, both in the unit of the total."""
    if total_bytes is None:
        return size(used_bytes)
    scale, unit = _scale(total_bytes)
    used = UNKNOWN if used_bytes is None else _figures(used_bytes / scale, unit)
    return f"{used} / {_figures(total_bytes / scale, unit)} {unit}"


def count(number: int) -> str:
    return f"{number:,}"


def duration(time_s: float) -> str:
    if time_s < 1:
        return f"{time_s * 1000:.0f} ms"
    if time_s < 100:
        return f"{time_s:.1f} s"
    return f"{time_s / 60:.0f} min"


def rate(per_s: float) -> str:
    return f"{per_s:.1f}" if per_s < 10 else f"{per_s:,.0f}"


def _scale(amount_bytes: int) -> tuple[int, str]:
    power = min((max(amount_bytes, 1).bit_length() - 1) // 10, len(_UNITS) - 1)
    return 1024**power, _UNITS[power]


def _figures(value: float, unit: str) -> str:
    return f"{value:.0f}" if unit == "B" or value >= 100 else f"{value:.1f}"

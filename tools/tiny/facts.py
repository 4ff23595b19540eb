"""What the corpus states and what the evaluation asks: one reading of ``questions.json``.

Owns the set of held-out values. Every value drawn for training passes :func:`is_held_out`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@lru_cache
def questions() -> dict[str, Any]:
    """The question lists, shared by corpus, evaluation and end-to-end tests."""
    return json.loads((HERE / "questions.json").read_text(encoding="utf-8"))


def capitals() -> dict[str, str]:
    """Country to capital, 40 of them."""
    return questions()["capitals"]


@lru_cache
def _held_out() -> frozenset[str]:
    lists = questions()["held_out"]
    words = (value for key, values in lists.items() if key != "number_pairs" for value in values)
    pairs = (f"{a}|{b}" for a, b in lists["number_pairs"])
    return frozenset(word.lower() for word in words) | frozenset(pairs)


def is_held_out(value: str) -> bool:
    """Whether a value, in any case, belongs to the evaluation alone."""
    return value.lower() in _held_out()


def is_held_out_pair(a: int, b: int) -> bool:
    """Whether this pair of numbers, in this order, belongs to the evaluation alone."""
    return f"{a}|{b}" in _held_out()

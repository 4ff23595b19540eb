"""What a value might have been, for the error that refuses it."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

__all__ = ["with_choices"]


def with_choices(problem: str, hint: Any) -> str:
    """msgspec's "Invalid enum value 'x'", which names no other, with the words that `hint` allows;
    any other problem as it is."""
    words = _words(hint) if "nvalid enum value" in problem else []
    return f"{problem}; expected {' or '.join(words)}" if words else problem


def _words(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [repr(word) for word in get_args(hint)]
    return [word for part in get_args(hint) for word in _words(part)]

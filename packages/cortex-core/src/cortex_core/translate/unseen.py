"""What a tool has returned and a model that reads only text cannot see.

The model asked for it, not the user, and it stays in the conversation: were it refused, no turn
could follow any more. So the model is told that there is something, and can go another way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["is_unseen", "told_of", "unseen_kinds"]

_WORDS = {
    "document": "a document",
    "image": "an image",
    "input_file": "a file",
    "input_image": "an image",
}
_TEXTS = ("text", "content")  # sources that a document's text can be read from


def is_unseen(part: dict[str, Any]) -> bool:
    """Of a result's part, in either vendor's words."""
    kind, source = part.get("type"), part.get("source")
    if kind == "document":
        return isinstance(source, dict) and source.get("type") not in _TEXTS
    return isinstance(kind, str) and kind in _WORDS


def told_of(part: dict[str, Any]) -> str:
    """What the model reads in place of an unseen part."""
    return f"[The tool returned {_WORDS[part['type']]}, which you cannot see: you read only text.]"


def unseen_kinds(results: Iterable[Any]) -> list[str]:
    """Of parts that are in these results and unseen, for `x-cortex-ignored`."""
    return sorted({part["type"] for part in _parts(results) if is_unseen(part)})


def _parts(results: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for result in results:
        for part in result if isinstance(result, list) else ():
            if isinstance(part, dict):
                yield part

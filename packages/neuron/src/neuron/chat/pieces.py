"""What an answer is made of, in the order in which a client may see it."""

from __future__ import annotations

import msgspec

__all__ = ["CallArguments", "CallStarted", "Piece", "Text", "Thought"]


class Text(msgspec.Struct, frozen=True, gc=False):
    """Part of `content`."""

    text: str


class Thought(msgspec.Struct, frozen=True, gc=False):
    """Part of `reasoning_content`."""

    text: str


class CallStarted(msgspec.Struct, frozen=True, gc=False):
    """A tool call; its arguments follow."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """A fragment of the JSON text of a call's arguments."""

    index: int
    fragment: str


Piece = Text | Thought | CallStarted | CallArguments

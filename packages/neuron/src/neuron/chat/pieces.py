"""What an answer is made of, in the order in which a client may see it."""

from __future__ import annotations

import msgspec

from cortex_core.wire.ipc import TokenScore

__all__ = ["CallArguments", "CallStarted", "Piece", "Text", "Thought"]


class Text(msgspec.Struct, frozen=True, gc=False):
    """Part of `content`. `scores`, where they were asked for, are of the tokens that came with it:
    of all content as it was generated, calls included."""

    text: str
    scores: list[TokenScore] = []


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

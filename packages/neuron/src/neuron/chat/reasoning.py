"""Split an answer into content and reasoning, from text that already carries its channel.

Which token is a marker was decided in the worker, by token id; here only white space at the seams
is tidied: templates and models put newlines after the opening marker, before the closing one and
after it, and nobody wants to read those.
"""

from __future__ import annotations

from cortex_core.wire.ipc import Channel
from neuron.chat.pieces import Text, Thought

__all__ = ["KeptReasoning", "Marked", "SplitReasoning"]

_NEWLINES = "\r\n"  # not spaces: the line after a block may start with an indent that matters


class Marked(Text, frozen=True, gc=False):
    """Reasoning or a marker kept inside content: for the client to read, never for a parser."""


class SplitReasoning:
    """Push machine: content becomes Text, reasoning Thought, markers nothing."""

    def __init__(self) -> None:
        self._has_thought = False  # over all blocks
        self._at_seam = False  # just after a marker: newlines are the template's
        self._is_new_block = True
        self._is_blank = True  # no content but white space so far, and no marker
        self._held = ""  # white space that counts only if more of the same follows

    def feed(self, channel: Channel, text: str) -> list[Text | Thought]:
        if channel == "content":
            return self._content(text)
        if channel == "reasoning":
            return self._reasoning(text)
        self._held = ""
        self._at_seam = self._is_new_block = True
        self._is_blank = False
        return []

    def finish(self) -> list[Text | Thought]:
        """White space alone, with no block after it, was the answer."""
        return [Text(self._held)] if self._is_blank and self._held else []

    def _content(self, text: str) -> list[Text | Thought]:
        if self._at_seam:
            text = text.lstrip(_NEWLINES)
            self._at_seam = not text
        elif self._is_blank:
            text = self._held + text
            self._is_blank = not text or text.isspace()
            self._held = text if self._is_blank else ""
            if self._is_blank:
                return []
        return [Text(text)] if text else []

    def _reasoning(self, text: str) -> list[Text | Thought]:
        if self._is_blank:  # the prompt opened the block: no marker came before
            self._is_blank = False
            self._held = ""
            self._at_seam = True
        if self._at_seam:
            text = text.lstrip(_NEWLINES)
            self._at_seam = not text
        text = self._held + text
        shown = text.rstrip()
        self._held = text[len(shown) :]
        if not shown:
            return []
        if self._is_new_block and self._has_thought:
            shown = "\n\n" + shown
        self._has_thought = True
        self._is_new_block = False
        return [Thought(shown)]


class KeptReasoning:
    """For `x-include-thinking`: everything stays in the content, verbatim, markers and all.

    `opened` is the marker, with what follows it, that the prompt itself ended in: the client never
    sees the prompt, and a block that is closed but was never opened cannot be read.
    """

    def __init__(self, opened: str = "") -> None:
        self._opened = opened

    def feed(self, channel: Channel, text: str) -> list[Text | Thought]:
        if self._opened:
            text, self._opened = self._opened + text, ""
            return [Marked(text)]
        return [Text(text) if channel == "content" else Marked(text)]

    def finish(self) -> list[Text | Thought]:
        return []

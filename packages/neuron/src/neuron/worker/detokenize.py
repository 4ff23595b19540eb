"""Bytes of tokens in, text out, as soon as it can no longer change. Pure.

Never half a character, never any part of a stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

__all__ = ["Pieces", "TextStream", "new_decoder"]

new_decoder = codecs.getincrementaldecoder("utf-8")


class Pieces:
    """Text of tokens by id, looked up once each. `whole` is None for a token whose bytes are not
    complete characters by themselves."""

    def __init__(self, size: int, piece: Callable[[int], bytes]) -> None:
        self.piece = piece
        self._whole: list[str | None] = [None] * size
        self._is_known = bytearray(size)

    def whole(self, token: int) -> str | None:
        if not self._is_known[token]:
            self._is_known[token] = 1
            try:
                self._whole[token] = self.piece(token).decode("utf-8")
            except UnicodeDecodeError:
                self._whole[token] = None
        return self._whole[token]


class TextStream:
    """The text of one answer. Bytes that are no UTF-8 become U+FFFD, exactly as if all were
    decoded at once. Where several stop strings could match, the one complete first counts."""

    def __init__(self, pieces: Pieces, stops: Sequence[str] = ()) -> None:
        self._pieces = pieces
        self._stops = tuple(stop for stop in stops if stop)
        self._by_first: dict[str, list[str]] = {}
        for stop in self._stops:
            self._by_first.setdefault(stop[0], []).append(stop)
        self._longest_head = max((len(stop) - 1 for stop in self._stops), default=0)
        self._decoder = new_decoder("replace")
        self._is_mid_character = False
        self._held = ""
        self.stopped_by: str | None = None
        """The stop string that was met; text after it is dropped."""

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, token: int) -> str:
        """The text that became certain with this token."""
        text = self._pieces.whole(token)
        if text is None or self._is_mid_character:
            text = self._decoder.decode(self._pieces.piece(token))
            self._is_mid_character = self._decoder.getstate()[0] != b""
        return self._release(text) if self._stops else text

    def flush(self) -> str:
        """What is left when no more tokens come; the stream may be pushed to afterwards."""
        text = self._decoder.decode(b"", True) if self._is_mid_character else ""
        self._is_mid_character = False
        if not self._stops:
            return text
        text = self._release(text) + self._held
        self._held = ""
        return text

    def drop_part(self) -> None:
        """Forget the beginning of a character, if that is what was pushed last."""
        self._decoder.reset()
        self._is_mid_character = False

    def _release(self, text: str) -> str:
        if self.stopped_by is not None:
            return ""
        text = self._held + text
        met = [(start + len(s), start, s) for s in self._stops if (start := text.find(s)) >= 0]
        if met:
            _, start, self.stopped_by = min(met)
            self._held = ""
            return text[:start]
        for start in range(max(len(text) - self._longest_head, 0), len(text)):
            for stop in self._by_first.get(text[start], ()):
                if stop.startswith(text[start:]):
                    self._held = text[start:]
                    return text[:start]
        self._held = ""
        return text

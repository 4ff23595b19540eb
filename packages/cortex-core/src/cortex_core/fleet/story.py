"""What has happened, in sentences: the bounded record that `explain` reads.

A note is kept as it was given and becomes a sentence only when somebody reads it: a request that
finds a ready replica must not pay for prose. When there are too many subjects the one that was
begun first is forgotten, and of each subject only the newest notes are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import msgspec

__all__ = ["Story", "StoryLine"]

Subject = TypeVar("Subject", bound=Hashable)


class StoryLine(msgspec.Struct, frozen=True):
    """`at` is in seconds of the clock that the conductor is given."""

    at: float
    text: str


class Story(Generic[Subject]):
    """At most `subjects` subjects with at most `lines` notes each."""

    def __init__(self, subjects: int, lines: int) -> None:
        self._most = subjects
        self._lines = lines
        self._notes: dict[Subject, deque[tuple[Any, ...]]] = {}

    def note(self, subject: Subject, at: float, text: str, *values: object) -> None:
        """`text` has a `{}` for each of `values`, which must not change afterwards."""
        notes = self._notes.get(subject)
        if notes is None:
            if len(self._notes) >= self._most:
                del self._notes[next(iter(self._notes))]
            notes = self._notes[subject] = deque(maxlen=self._lines)
        notes.append((at, text, *values))

    def read(self, subject: Subject) -> list[StoryLine]:
        """Oldest first; empty for a subject that is not known, or no longer."""
        return [
            StoryLine(at, text.format(*values))
            for at, text, *values in self._notes.get(subject, ())
        ]

"""A failure that is not an answer of the gateway: nothing listens, a child died, a check failed."""

from __future__ import annotations

__all__ = ["Failure"]


class Failure(Exception):
    """`message` is one sentence for people; `details` are lines to show below it as they are."""

    def __init__(self, message: str, details: list[str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or []

"""Whether a replica that keeps failing is still asked.

    closed ──N failures in a row──► open ──pause over──► half-open ──first byte──► on trial
                                      ▲                      │                        │
                                      └──────── a failure, twice the pause ───────────┘

Half-open lets one request through as a probe. On trial is closed, but for what the next failure
does; an answer to its end, of anybody's, makes it closed as before. A node that only says that it
is well closes nothing.
"""

from __future__ import annotations

__all__ = ["NEWS_S", "Breaker"]

FAILURES = 3
PAUSE_FIRST_S = 1.0
PAUSE_MOST_S = 30.0

# News of why a request failed come within milliseconds of the failure; so long is waited for them.
NEWS_S = 1.0


class Breaker:
    """Of one replica. Every time is passed in."""

    __slots__ = ("_failed_at", "_failures", "_pause_s", "_until", "probe")

    def __init__(self) -> None:
        self._failures = 0
        self._failed_at = float("-inf")
        self._pause_s = 0.0
        self._until: float | None = None
        self.probe: str | None = None  # the request that tries a half-open replica

    @property
    def is_closed(self) -> bool:
        return self._until is None

    @property
    def until(self) -> float | None:
        """When a probe may go through; None when it is closed or the probe is on its way."""
        return self._until if self.probe is None else None

    def is_chronic(self, now: float) -> bool:
        """Whether a probe has failed, too, a moment ago at least (its node may still tell that it
        is gone, or recovers), and no other may go yet."""
        if self.until is None or self._pause_s == PAUSE_FIRST_S:
            return False
        return self.until - self._pause_s + NEWS_S <= now < self.until

    def wants_probe(self, now: float) -> bool:
        return self._until is not None and self.probe is None and now >= self._until

    def began(self, request: str) -> bool:
        """The first byte of an answer has come. Returns whether that closed it, on trial: others
        need not wait for the rest of what may be a long answer."""
        if self._until is None or self.probe != request:
            return False
        self._failures, self._until, self.probe = FAILURES - 1, None, None
        return True

    def succeeded(self, request: str) -> bool:
        """A request was answered. Returns whether that closed it: only its probe does, for what was
        sent before it opened says nothing about now."""
        if self._until is None:
            self._failures, self._pause_s = 0, 0.0
            return False
        if self.probe != request:
            return False
        self._failures, self._pause_s, self._until, self.probe = 0, 0.0, None, None
        return True

    def failed(self, request: str, sent_at: float, now: float) -> bool:
        """A request was failed. Returns whether that opened it (again). Of requests that were under
        way together only the first counts: what broke them all may be over already."""
        if self._until is None:
            if sent_at < self._failed_at:
                return False
            self._failures += 1
            self._failed_at = now
            if self._failures < FAILURES:
                return False
        elif self.probe != request:
            return False
        self._pause_s = min(self._pause_s * 2, PAUSE_MOST_S) or PAUSE_FIRST_S
        self._until = now + self._pause_s
        self.probe = None
        return True

    def unused(self, request: str) -> None:
        """The probe ended without an answer of the replica's: another one may go."""
        if self.probe == request:
            self.probe = None

"""The requests of a gateway and the lines they wait in: one per model, fair between callers.

A line gives each caller one turn after the other, and each caller's requests theirs in the order
they came; so somebody with a hundred requests delays somebody with one by one request.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

from cortex_core.errors import Fault
from cortex_core.fleet.lifecycle import Place
from cortex_core.fleet.topology import Replica

__all__ = ["Ticket", "WaitingRoom"]


class Ticket:
    """One request from coming to ending. It waits while `replica` is None.

    `node`: the only one it may go to. `place`: where it was sent, at `sent_at`. `spent`: the
    (place, incarnation) that have failed it or turned it away, and `fault` how the first of them
    did; `is_retried`: one has failed it. `decide_by`: when a request that was failed by the only
    replica gives up looking for another. `load_s`: how long it has waited for loads, the one it has
    been waiting for since `loading_since` left out; None = for none.
    """

    __slots__ = (
        "caller",
        "came_at",
        "deadline",
        "decide_by",
        "fault",
        "is_operators",
        "is_retried",
        "load_s",
        "loading_since",
        "model",
        "node",
        "options",
        "place",
        "prefix",
        "replica",
        "request",
        "sent_at",
        "spent",
    )

    def __init__(
        self, request: str, model: str, caller: str, prefix: tuple[int, ...], came_at: float
    ) -> None:
        self.request = request
        self.model = model
        self.caller = caller
        self.prefix = prefix
        self.came_at = came_at
        self.deadline = came_at
        self.replica: Replica | None = None
        self.place: Place | None = None
        self.sent_at = came_at
        self.node: str | None = None
        self.options: dict[str, Any] | None = None
        self.is_operators = False
        self.spent: tuple[tuple[Place, int], ...] = ()
        self.is_retried = False
        self.fault: Fault | None = None
        self.decide_by: float | None = None
        self.loading_since: float | None = None
        self.load_s: float | None = None

    def load_began(self, now: float) -> None:
        """What it waits for from now on is a load; perhaps it has been so for a while."""
        if self.loading_since is None:
            self.loading_since = now

    def load_ended(self, now: float) -> None:
        """It waits for no load, or no longer."""
        if self.loading_since is not None:
            self.load_s = (self.load_s or 0.0) + now - self.loading_since
            self.loading_since = None


class _Line:
    """The waiting requests of one model, by caller; the caller whose turn is next comes first."""

    __slots__ = ("callers", "length")

    def __init__(self) -> None:
        self.callers: dict[str, dict[str, Ticket]] = {}
        self.length = 0


class WaitingRoom:
    """All lines. A ticket is in one at most."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def join(self, ticket: Ticket) -> None:
        """To the end of its caller's part of the line."""
        line = self._lines.get(ticket.model)
        if line is None:
            line = self._lines[ticket.model] = _Line()
        line.callers.setdefault(ticket.caller, {})[ticket.request] = ticket
        line.length += 1

    def leave(self, ticket: Ticket) -> None:
        """It has been served, refused or given up; its caller's next turn comes after everybody
        else's. A ticket that does not wait is left alone."""
        line = self._lines.get(ticket.model)
        own = line.callers.get(ticket.caller) if line is not None else None
        if line is None or own is None or own.pop(ticket.request, None) is None:
            return
        line.length -= 1
        del line.callers[ticket.caller]
        if own:
            line.callers[ticket.caller] = own
        elif not line.callers:
            del self._lines[ticket.model]

    def in_turn(self, model: str) -> list[Ticket]:
        """Everybody who waits for `model`, in the order in which they are to be served."""
        line = self._lines.get(model)
        if line is None:
            return []
        rounds: Iterable[tuple[Ticket | None, ...]] = zip_longest(
            *(own.values() for own in line.callers.values())
        )
        return [ticket for tickets in rounds for ticket in tickets if ticket is not None]

    def count(self, model: str) -> int:
        line = self._lines.get(model)
        return line.length if line is not None else 0

    @property
    def counts(self) -> dict[str, int]:
        """Model → how many wait for it; models for which nobody waits are not in it."""
        return {model: line.length for model, line in self._lines.items()}

    @property
    def models(self) -> list[str]:
        """Those somebody waits for."""
        return list(self._lines)

"""Where requests and orders end: in the log, in the metrics, and for a while in memory."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cortex_core.fleet.events import OrderEnded
from cortex_core.outcome import Outcome
from cortex_gateway.metrics import UNKNOWN_MODEL, Metrics
from cortex_gateway.orders import Order
from cortex_gateway.requestlog import RequestLog

__all__ = ["REMEMBERED", "Ledger"]

REMEMBERED = 1000
"""How many of the last requests can be explained."""


class Ledger:
    """`known`: the id behind a name that a client used, None for a model that nobody has."""

    def __init__(
        self, known: Callable[[str], str | None], metrics: Metrics, log: RequestLog
    ) -> None:
        self._known = known
        self._metrics = metrics
        self._log = log
        self._outcomes: dict[str, Outcome] = {}

    def record(self, outcome: Outcome) -> None:
        self._log.write(outcome)
        if len(self._outcomes) >= REMEMBERED:
            del self._outcomes[next(iter(self._outcomes))]
        self._outcomes[outcome.request_id] = outcome
        label = self._known(outcome.model) or UNKNOWN_MODEL
        if label != outcome.model:
            outcome = msgspec.structs.replace(outcome, model=label)
        self._metrics.record(outcome)

    def record_order(self, order: Order, end: OrderEnded) -> None:
        model = getattr(order, "model", "")
        self._metrics.record_order(order, end, self._known(model) or UNKNOWN_MODEL)

    def outcome(self, request: str) -> Outcome | None:
        """How one of the last requests ended; the newest of those that share an id."""
        return self._outcomes.get(request)

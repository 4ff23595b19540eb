"""Where outcomes end: each becomes one log line and its share of the metrics."""

from __future__ import annotations

import msgspec

from cortex_core.outcome import Outcome
from cortex_gateway.fleet import Fleet
from cortex_gateway.metrics import UNKNOWN_MODEL, Metrics
from cortex_gateway.requestlog import RequestLog

__all__ = ["Ledger"]


class Ledger:
    def __init__(self, fleet: Fleet, metrics: Metrics, log: RequestLog) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._log = log

    def record(self, outcome: Outcome) -> None:
        self._log.write(outcome)
        if outcome.node is None and not self._fleet.knows(outcome.model):
            outcome = msgspec.structs.replace(outcome, model=UNKNOWN_MODEL)
        self._metrics.record(outcome)

"""What is remembered of requests, and under which names they are counted."""

from __future__ import annotations

import io
import logging

import msgspec
import pytest

from cortex_core.errors import Fault
from cortex_core.fleet.events import Load, OrderEnded
from cortex_core.outcome import Outcome
from cortex_gateway.ledger import REMEMBERED, Ledger
from cortex_gateway.metrics import UNKNOWN_MODEL, Metrics
from cortex_gateway.requestlog import RequestLog

OUTCOME = Outcome("ok", "id", "m", "a", 200, None, False, None, 0.1, 0.2)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def ledger(metrics: Metrics) -> Ledger:
    """Of a fleet with the model m, also known as best."""
    log = RequestLog(io.StringIO(), logging.CRITICAL)
    return Ledger({"m": "m", "best": "m"}.get, metrics, log)


def counted(metrics: Metrics, name: str) -> dict[str, float]:
    """Samples of a counter by model."""
    (family,) = (f for f in metrics.registry.collect() if f.name == name)
    return {s.labels["model"]: s.value for s in family.samples}


def test_the_last_requests_are_remembered_and_no_more(ledger: Ledger) -> None:
    for number in range(REMEMBERED + 1):
        ledger.record(msgspec.structs.replace(OUTCOME, request_id=str(number)))
    assert ledger.outcome("0") is None
    assert ledger.outcome("1") is not None
    assert ledger.outcome(str(REMEMBERED)) is not None


def test_of_requests_that_share_an_id_the_newest_is_remembered(ledger: Ledger) -> None:
    ledger.record(OUTCOME)
    ledger.record(msgspec.structs.replace(OUTCOME, status=503))
    found = ledger.outcome("id")
    assert found is not None
    assert found.status == 503


def test_requests_count_for_the_model_behind_the_name(ledger: Ledger, metrics: Metrics) -> None:
    for name in ("m", "best", "made-up"):
        ledger.record(msgspec.structs.replace(OUTCOME, model=name))
    assert counted(metrics, "cortex_requests") == {"m": 2, UNKNOWN_MODEL: 1}


def test_an_order_for_a_model_that_is_no_more_counts_as_unknown(
    ledger: Ledger, metrics: Metrics
) -> None:
    for name in ("m", "gone"):
        ledger.record_order(Load(1, name, "a", None, 0), OrderEnded(1, Fault("x", "y")))
    assert counted(metrics, "cortex_model_load_failures") == {"m": 1, UNKNOWN_MODEL: 1}

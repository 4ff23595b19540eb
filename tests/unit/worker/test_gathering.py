"""A burst's requests reach an idle engine one after the other, and are computed together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.worker.driven import Driven, driven
from tests.unit.worker.worker_process import TINY


class Arrivals:
    """Stands where the engine waits for news: one more request comes in each of the first `more`
    waits, and none in the next."""

    def __init__(self, engine: Driven, more: int) -> None:
        self._engine = engine
        self._more = more
        self.waits: list[float] = []
        engine.engine._arrival.wait = self._wait  # pyright: ignore[reportAttributeAccessIssue]

    def _wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        if len(self.waits) > self._more:
            return False
        self._engine.submit(f"request {len(self.waits)}", max_tokens=2)
        return True


@pytest.fixture
def engine() -> Iterator[Driven]:
    with driven(TINY) as engine:
        yield engine


def test_who_comes_within_a_moment_of_the_last_is_in_the_first_pass(engine: Driven) -> None:
    engine.engine._scheduler.measured(100, 50.0)  # a slow machine
    arrivals = Arrivals(engine, more=2)
    first = engine.submit("request 0", max_tokens=2)
    engine.engine._gather()
    assert len(engine.engine._scheduler.prefilling) == 3
    assert len(arrivals.waits) == 3
    assert max(arrivals.waits) <= 0.002
    engine.run()
    assert first.reason == "length"


def test_nobody_waits_for_longer_than_a_fiftieth_of_the_prompts_there_are(engine: Driven) -> None:
    engine.engine._scheduler.measured(1000, 1.0)
    arrivals = Arrivals(engine, more=0)
    engine.submit([5] * 11, max_tokens=2)
    engine.engine._gather()
    assert arrivals.waits == [pytest.approx(0.011 / 50)]


def test_a_burst_that_does_not_end_is_not_waited_for(engine: Driven) -> None:
    engine.engine._scheduler.measured(100, 50.0)
    arrivals = Arrivals(engine, more=10**6)
    engine.submit("request 0", max_tokens=2)
    engine.engine._gather()
    assert 1 <= len(arrivals.waits) < 10**6


def test_while_the_speed_is_unknown_nobody_waits(engine: Driven) -> None:
    arrivals = Arrivals(engine, more=0)
    engine.submit("request 0", max_tokens=2)
    engine.engine._gather()
    assert arrivals.waits == []

"""Whether a replica that keeps failing is still asked."""

from __future__ import annotations

from cortex_core.fleet.breaker import Breaker


def _opened() -> Breaker:
    breaker = Breaker()
    for request in ("r1", "r2", "r3"):
        breaker.failed(request, 10.0, 10.0)
    return breaker


def test_the_third_failure_in_a_row_opens_it():
    breaker = Breaker()
    assert not breaker.failed("r1", 10.0, 10.0)
    assert not breaker.failed("r2", 10.0, 10.0)
    assert breaker.is_closed
    assert breaker.failed("r3", 10.0, 10.0)
    assert not breaker.is_closed


def test_a_success_between_failures_keeps_it_closed():
    breaker = Breaker()
    for _ in range(5):
        breaker.failed("r1", 10.0, 10.0)
        breaker.failed("r2", 10.0, 10.0)
        breaker.succeeded("r3")
    assert breaker.is_closed


def test_requests_that_fail_together_are_one_failure():
    """A connection that breaks takes all its answers with it."""
    breaker = Breaker()
    for number in range(5):
        breaker.failed(f"r{number}", 9.0, 10.0 + number / 1000)
    assert breaker.is_closed
    breaker.failed("s1", 11.0, 12.0)
    breaker.failed("s2", 11.5, 12.5)
    assert breaker.is_closed
    assert breaker.failed("s3", 12.5, 13.0)


def test_a_probe_is_wanted_after_the_pause_and_only_one():
    breaker = _opened()
    assert not breaker.wants_probe(10.9)
    assert breaker.wants_probe(11.0)
    breaker.probe = "r4"
    assert not breaker.wants_probe(12.0)


def test_its_probe_closes_it():
    breaker = _opened()
    breaker.probe = "r4"
    assert breaker.succeeded("r4")
    assert breaker.is_closed


def test_its_probes_first_byte_closes_it_and_the_next_failure_opens_it_for_longer():
    breaker = _opened()
    breaker.probe = "r4"
    assert not breaker.began("r0")
    assert breaker.began("r4")
    assert breaker.is_closed
    assert breaker.failed("r4", 11.0, 12.0)
    assert breaker.until == 14.0


def test_an_answer_to_its_end_after_a_probe_makes_everything_good_again():
    breaker = _opened()
    breaker.probe = "r4"
    breaker.began("r4")
    breaker.succeeded("r5")
    assert not breaker.failed("r4", 11.0, 12.0)
    assert not breaker.failed("r6", 12.0, 12.0)
    assert breaker.failed("r7", 12.0, 12.0)
    assert breaker.until == 13.0


def test_what_was_sent_before_it_opened_closes_nothing():
    breaker = _opened()
    breaker.probe = "r4"
    assert not breaker.succeeded("r0")
    assert not breaker.is_closed


def test_each_failed_probe_doubles_the_pause_up_to_half_a_minute():
    breaker = _opened()
    now, pauses = 10.0, []
    for number in range(8):
        assert breaker.until is not None
        pauses.append(breaker.until - now)
        now = breaker.until
        breaker.probe = f"p{number}"
        assert breaker.failed(f"p{number}", now, now)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_late_failure_of_an_earlier_request_does_not_double_the_pause():
    breaker = _opened()
    assert not breaker.failed("r0", 9.0, 10.5)
    assert breaker.until == 11.0


def test_a_probe_that_ends_without_an_answer_makes_way_for_another():
    breaker = _opened()
    breaker.probe = "r4"
    breaker.unused("r0")
    assert not breaker.wants_probe(11.0)
    breaker.unused("r4")
    assert breaker.wants_probe(11.0)

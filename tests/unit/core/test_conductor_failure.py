"""Requests that their replicas fail, and replicas that keep failing."""

from __future__ import annotations

import pytest

from cortex_core.errors import Fault
from cortex_core.fleet.events import DrainWanted, Estimate, Load, NodeObserved, Refuse, Send
from tests.unit.core.fleet_playbook import ILL, Stage, model, sent

FULL = Fault("rate_limit_exceeded", "the queue is full")
DRAINED = Fault("node_unavailable", "the neuron 'a' is drained")
GONE = Fault("model_not_found", "the model is not loaded")


def _pair() -> Stage:
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b", model("m"))
    return stage


def _tripped(stage: Stage) -> None:
    """The only replica has failed three requests in a row, a second ago."""
    for number in range(3):
        stage.ask(f"f{number}")
        stage.fail(f"f{number}")
    stage.later(1)


def _probed() -> Stage:
    """It was given a probe after that, which failed it as well while `r1` waited for it."""
    stage = Stage()
    stage.observe("a", model("m"))
    _tripped(stage)
    stage.ask("probe")
    stage.ask("r1")
    stage.fail("probe")
    return stage


def test_a_failed_request_goes_to_another_replica():
    stage = _pair()
    assert stage.ask("r1") == [sent("r1", "a")]
    assert stage.fail("r1") == [sent("r1", "b")]
    assert stage.conductor.in_flight("a") == 0
    assert stage.conductor.in_flight("b") == 1


def test_a_request_that_fails_twice_hears_how_it_failed_first():
    stage = _pair()
    stage.ask("r1")
    stage.fail("r1")
    assert stage.fail("r1", Fault("stalled", "silence")) == [Refuse("r1", ILL)]
    assert stage.conductor.in_flight("b") == 0


def test_a_request_that_is_turned_away_again_and_again_is_served_in_the_end():
    """Two gateways that unload each other's models must not wear out each other's requests."""
    stage = _pair()
    stage.ask("r1")
    assert stage.fail("r1", GONE) == [sent("r1", "b")]
    assert stage.fail("r1", GONE) == []
    stage.observe("a")
    stage.observe("b")
    assert stage.observe("a", model("m")) == [sent("r1", "a")]
    assert stage.fail("r1", GONE) == []
    stage.observe("a")
    assert stage.observe("b", model("m")) == [sent("r1", "b")]
    # To be failed is another thing.
    stage.fail("r1")
    stage.observe("b")
    assert stage.observe("a", model("m")) == [sent("r1", "a")]
    assert stage.fail("r1") == [Refuse("r1", GONE)]


def test_a_request_that_crossed_a_drain_on_its_way_goes_there_again_when_it_is_over():
    stage = _pair()
    stage.ask("r1")
    stage.play(DrainWanted("a", True))
    assert stage.fail("r1", DRAINED) == [sent("r1", "b")]
    stage.play(DrainWanted("b", True))
    stage.play(DrainWanted("a", False))
    assert stage.fail("r1", DRAINED) == [sent("r1", "a")]
    # Nothing of this was an illness: it may still fail once, and go elsewhere.
    stage.play(DrainWanted("b", False))
    assert stage.fail("r1") == [sent("r1", "b")]


def test_drains_trip_no_breaker():
    stage = Stage()
    stage.observe("a", model("m"))
    for number in range(4):
        stage.ask(f"r{number}")
    stage.play(DrainWanted("a", True))
    for number in range(4):
        stage.fail(f"r{number}", DRAINED)
    stage.play(DrainWanted("a", False))
    assert stage.ask("r4") == [sent("r4", "a")]


def test_who_is_turned_away_waits_no_longer_than_anybody_may_in_all():
    stage = Stage("a b", max_wait_s=10)
    stage.observe("a", model("m", "loading"))
    stage.ask("r1")
    stage.later(6)
    assert stage.observe("a", model("m")) == [sent("r1", "a", load_s=6.0)]
    stage.fail("r1", GONE)
    stage.observe("a", model("m", "loading"))
    assert stage.later(3) == []
    assert stage.later(1) == [Refuse("r1", GONE)]


def test_the_only_replicas_failure_is_told_when_no_news_come_within_a_second():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.ask("r1")
    assert stage.fail("r1") == []
    assert stage.later(0.9) == []
    assert stage.later(0.1) == [Refuse("r1", ILL)]


def test_a_request_whose_node_is_found_lost_is_served_by_a_cold_load_elsewhere():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b")
    stage.ask("r1")
    stage.fail("r1")
    assert stage.lose("a") == [Estimate("m", "b")]
    assert stage.estimate("b") == [Load(1, "m", "b", "cuda:0", 0)]
    assert stage.done(1, model("m")) == [sent("r1", "b", load_s=0.0)]


def test_a_request_whose_worker_is_found_dead_waits_for_its_recovery():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.ask("r1")
    stage.fail("r1")
    stage.observe("a", model("m", "recovering"))
    assert stage.later(5) == []
    assert stage.observe("a", model("m")) == [sent("r1", "a", load_s=5.0)]


def test_with_nowhere_left_the_first_failure_is_what_the_client_hears():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.ask("r1")
    stage.fail("r1")
    assert stage.lose("a") == [Refuse("r1", ILL)]


def test_a_failed_model_tells_its_cause():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.observe("a", model("m", "failed", fault=Fault("upstream_failed", "killed by SIGSEGV")))
    (refused,) = stage.ask("r1")
    assert isinstance(refused, Refuse)
    assert refused.fault.code == "no_capacity"
    assert "could not be loaded: on a: killed by SIGSEGV" in refused.fault.message


def test_a_restarted_node_has_nothing_of_what_it_had():
    stage = _pair()
    stage.observe("a", boot="b2")
    assert stage.ask("r1") == [sent("r1", "b")]
    assert stage.ask("r2") == [sent("r2", "b")]


def test_a_late_state_of_the_same_boot_is_ignored():
    stage = Stage()
    late = NodeObserved("a", stage.state("a"))
    stage.observe("a", model("m"))
    assert stage.play(late) == []
    assert stage.ask("r1") == [sent("r1", "a")]


def test_news_of_what_is_not_configured_or_not_known_are_nothing():
    stage = Stage()
    assert stage.observe("elsewhere", model("m")) == []
    assert stage.lose("elsewhere") == []
    assert stage.estimate("elsewhere") == []
    assert stage.play(DrainWanted("elsewhere", True)) == []
    assert stage.end("nobody") == []
    assert stage.fail("nobody") == []
    assert stage.answering("nobody") == []
    assert stage.done(99) == []


def test_a_client_that_left_is_not_tried_again():
    stage = _pair()
    stage.ask("r1")
    stage.end("r1", has_answer=False)
    assert stage.fail("r1") == []


def test_a_replica_that_fails_three_in_a_row_is_put_aside():
    stage = _pair()
    for number in range(3):
        assert stage.ask(f"f{number}") == [sent(f"f{number}", "a")]
        stage.fail(f"f{number}")
        stage.end(f"f{number}")
    assert stage.ask("r1") == [sent("r1", "b")]
    assert stage.ask("r2") == [sent("r2", "b")]
    stage.now += 1
    assert stage.ask("probe") == [sent("probe", "a")]
    assert stage.ask("r3") == [sent("r3", "b")]


@pytest.mark.parametrize("code", ["upstream_failed", "stalled", "internal_error"])
def test_a_replica_whose_answers_fail_three_times_in_a_row_is_put_aside(code: str):
    stage = _pair()
    for number in range(3):
        assert stage.ask(f"f{number}") == [sent(f"f{number}", "a")]
        stage.end(f"f{number}", fault=Fault(code, "it broke off"))
    assert stage.ask("r1") == [sent("r1", "b")]
    assert [line.text for line in stage.conductor.story("f0")] == [
        "sent to a on cuda:0",
        "failed by a: it broke off",
    ]
    assert stage.conductor.history("m", "a")[-1].text == "put aside for 1 s: it broke off"


def test_an_answer_that_is_the_clients_own_error_is_a_good_one():
    stage = _pair()
    for number in range(3):
        assert stage.ask(f"f{number}") == [sent(f"f{number}", "a")]
        stage.end(f"f{number}", fault=Fault("context_length_exceeded", "too long"))
    assert stage.ask("r1") == [sent("r1", "a")]


def test_answers_that_a_drain_cut_off_trip_no_breaker():
    stage = Stage()
    stage.observe("a", model("m"))
    for number in range(3):
        stage.ask(f"r{number}")
        stage.play(DrainWanted("a", True))
        stage.end(f"r{number}", fault=ILL)
        stage.play(DrainWanted("a", False))
    assert stage.ask("r3") == [sent("r3", "a")]


def test_a_probe_whose_answer_breaks_off_doubles_the_pause():
    stage = Stage()
    stage.observe("a", model("m"))
    _tripped(stage)
    assert stage.ask("probe") == [sent("probe", "a")]
    stage.end("probe", fault=ILL)
    assert stage.conductor.history("m", "a")[-1].text == "put aside for 2 s: the connection broke"


def test_while_a_probe_is_on_its_way_others_wait():
    stage = Stage()
    stage.observe("a", model("m"))
    _tripped(stage)
    assert stage.ask("probe") == [sent("probe", "a")]
    assert stage.ask("r1") == []
    assert stage.end("probe") == [sent("r1", "a")]


def test_a_probe_that_is_being_answered_lets_the_others_pass():
    """It may be a stream of many minutes."""
    stage = Stage()
    stage.observe("a", model("m"))
    _tripped(stage)
    assert stage.ask("probe") == [sent("probe", "a")]
    assert stage.ask("r1") == []
    assert stage.answering("probe") == [sent("r1", "a")]
    assert stage.ask("r2") == [sent("r2", "a")]
    stage.end("probe", fault=ILL)
    assert stage.ask("r3") == []


def test_a_failed_probe_doubles_the_pause():
    stage = _probed()
    (waited, told) = stage.later(1.0)
    assert told == Refuse("probe", ILL)
    assert isinstance(waited, Refuse)
    assert waited.request == "r1"
    assert waited.fault.code == "no_capacity"
    assert waited.fault.retry_after_s == 1
    assert "put aside for now" in waited.fault.message
    (late,) = stage.ask("r2")
    assert isinstance(late, Refuse)
    stage.now += 1
    assert stage.ask("r3") == [sent("r3", "a")]


def test_who_waits_behind_a_failed_probe_waits_on_where_the_model_recovers():
    stage = _probed()
    stage.observe("a", model("m", "recovering"))
    assert stage.later(1.0) == []
    out = stage.observe("a", model("m"))
    assert [each.request for each in out if isinstance(each, Send)] == ["r1", "probe"]


def test_a_node_that_says_it_is_well_closes_nothing():
    stage = Stage()
    stage.observe("a", model("m"))
    _tripped(stage)
    stage.ask("probe")
    stage.observe("a", model("m"))
    assert stage.ask("r1") == []


def test_a_probe_whose_client_left_makes_way_for_another():
    stage = Stage()
    stage.observe("a", model("m"))
    _tripped(stage)
    stage.ask("probe")
    stage.ask("r1")
    stage.ask("r2")
    assert stage.end("probe", has_answer=False) == [sent("r1", "a")]
    assert stage.end("r1") == [sent("r2", "a")]


def test_a_model_that_was_loaded_anew_is_trusted_again():
    stage = Stage()
    stage.observe("a", model("m"))
    _tripped(stage)
    stage.observe("a", model("m", "recovering"))
    stage.observe("a", model("m"))
    assert stage.ask("r1") == [sent("r1", "a")]
    assert stage.ask("r2") == [sent("r2", "a")]


def test_a_replica_that_is_full_is_not_ill():
    stage = Stage()
    stage.observe("a", model("m"))
    for number in range(5):
        stage.ask(f"r{number}")
        stage.fail(f"r{number}", FULL)
        stage.later(1)
    assert stage.ask("r5") == [sent("r5", "a")]
    assert stage.ask("r6") == [sent("r6", "a")]


def test_while_a_replica_is_put_aside_a_free_node_is_given_the_model():
    stage = Stage("a b", models=("m", "x"))
    stage.observe("a", model("m"))
    _tripped(stage)
    stage.ask("probe")
    stage.observe("b")
    assert stage.ask("r1") == [Estimate("m", "b")]
    assert stage.estimate("b") == [Load(1, "m", "b", "cuda:0", 0)]


def test_while_a_replica_is_put_aside_nothing_is_evicted_for_it():
    stage = Stage("a b", models=("m", "x"))
    stage.observe("a", model("m"))
    _tripped(stage)
    stage.ask("probe")
    stage.observe("b", model("x", gb=9))
    assert stage.ask("r1") == [Estimate("m", "b")]
    assert stage.estimate("b") == []
    assert stage.end("probe") == [sent("r1", "a")]

"""What is loaded for requests that can go nowhere yet, and what if that fails."""

from __future__ import annotations

from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.events import Estimate, Load, ReadState, Refuse, Send
from tests.unit.core.fleet_playbook import (
    BROKEN,
    CONFLICT,
    ILL,
    NOT_FOUND,
    Stage,
    load,
    model,
    refusal,
    sent,
)

# cold loads


def test_ten_requests_for_a_cold_model_make_one_load_and_ten_answers():
    stage = Stage()
    stage.observe("a", holdings=7)
    assert stage.ask("r0") == [Estimate("m", "a")]
    assert [stage.ask(f"r{n}") for n in range(1, 10)] == [[]] * 9
    assert stage.estimate("a") == [load(1, "a", holdings=7)]
    stage.now += 3
    assert stage.done(1, model("m")) == [sent(f"r{n}", "a", load_s=3.0) for n in range(10)]


def test_a_load_says_what_the_catalogue_says():
    entry = ModelEntry(id="m", context=4096, source="hub")
    stage = Stage(models=(entry,))
    stage.observe("a")
    options = {"context": 4096, "source": "hub"}
    assert stage.ask("r1") == [Estimate("m", "a", options)]
    assert stage.estimate("a") == [Load(1, "m", "a", "cuda:0", 0, options)]


def test_a_model_goes_where_it_fits_without_an_eviction():
    stage = Stage("a b")
    stage.observe("a", model("x", gb=8))
    stage.observe("b")
    stage.ask("r1")
    stage.estimate("a")
    assert stage.estimate("b") == [load(1, "b")]


def test_a_node_that_does_not_answer_is_waited_for_two_seconds():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b")
    stage.ask("r1")
    assert stage.estimate("b") == []
    assert stage.later(1.9) == []
    assert stage.later(0.1) == [load(1, "b")]


def test_what_a_node_has_said_is_not_asked_again():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    stage.done(1, model("m"))
    stage.end("r1")
    stage.observe("a")
    assert stage.ask("r2") == [ReadState(2, "a")]


def test_after_a_restart_a_node_is_asked_again():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.end("r1")
    stage.estimate("a")
    stage.observe("a", boot="b2")
    assert stage.ask("r2") == [Estimate("m", "a")]


def test_a_question_that_did_not_arrive_is_asked_again():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    assert stage.estimate("a", fault=ILL) == []
    assert stage.later(4.9) == []
    assert stage.later(0.1) == [Estimate("m", "a")]


def test_a_load_begun_by_somebody_else_is_waited_for():
    stage = Stage()
    stage.observe("a", model("m", "loading"))
    assert stage.ask("r1") == []
    assert stage.observe("a", model("m")) == [sent("r1", "a", load_s=0.0)]


def test_a_recovering_model_is_waited_for():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.observe("a", model("m", "recovering"))
    assert stage.ask("r1") == []
    assert stage.observe("a", model("m")) == [sent("r1", "a", load_s=0.0)]


def test_those_who_waited_are_spread_over_callers_in_turn():
    stage = Stage()
    stage.observe("a", model("m", "loading"))
    for request, caller in (("x1", "x"), ("x2", "x"), ("y1", "y")):
        stage.ask(request, caller=caller)
    out = stage.observe("a", model("m"))
    assert [one.request for one in out if isinstance(one, Send)] == ["x1", "y1", "x2"]


def test_a_node_is_given_one_model_at_a_time():
    stage = Stage(models=("m", "n"))
    stage.observe("a")
    stage.ask("r1", "m")
    stage.ask("r2", "n")
    assert stage.estimate("a", "m") == [load(1, "a")]
    assert stage.estimate("a", "n") == []
    assert stage.done(1, model("m")) == [sent("r1", "a", load_s=0.0), ReadState(2, "a")]
    assert stage.observe("a", model("m"), holdings=2) == []
    assert stage.done(2) == [load(3, "a", "n", holdings=2)]


def test_a_model_whose_only_node_is_away_is_loaded_elsewhere():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b")
    stage.lose("a")
    assert stage.ask("r1") == [Estimate("m", "b")]
    assert stage.estimate("b") == [load(1, "b")]


# what nobody has asked for yet


def test_nodes_with_nothing_to_do_are_asked_about_the_catalogue_one_model_at_a_time():
    stage = Stage(models=("m", "n", "x"))
    stage.observe("a", model("x"))
    assert stage.later(1) == [Estimate("m", "a")]
    assert stage.later(1) == []
    assert stage.estimate("a", "m") == [Estimate("n", "a")]
    assert stage.estimate("a", "n", fault=NOT_FOUND) == []
    assert stage.later(60) == []
    assert stage.conductor.feasible_on("m", stage.now) == ["a"]
    assert stage.ask("r1", "m") == [load(1, "a")]


def test_a_tick_is_wished_for_when_a_node_appears():
    stage = Stage()
    stage.observe("a")
    assert stage.wakes == [stage.now + 1]


def test_a_node_that_is_being_changed_is_asked_nothing_that_can_wait():
    stage = Stage(models=("m", "n"))
    stage.observe("a")
    stage.ask("r1")
    assert stage.estimate("a") == [load(1, "a")]
    assert stage.later(1) == []


def test_a_model_that_an_unreachable_node_may_have_is_not_called_unknown():
    stage = Stage("a b")
    stage.observe("a")
    stage.lose("b")
    stage.ask("r1")
    fault = refusal(stage.estimate("a", fault=NOT_FOUND))
    assert fault.code == "no_capacity"
    assert "b: is unreachable: silent for 6 s" in fault.message


def test_how_much_a_model_is_asked_for_is_remembered():
    stage = Stage()
    stage.observe("a", model("x"))
    stage.ask("r1", "x")
    stage.ask("r2", "m")
    stage.ask("r3", "nobody")
    demand = stage.conductor.ledger.demand
    assert demand("x", stage.now) > 0
    assert demand("m", stage.now) > 0
    assert demand("nobody", stage.now) == 0


# loads that fail


def test_a_load_that_fails_is_tried_on_the_next_best_node_once():
    stage = Stage("a b c")
    for node in "abc":
        stage.observe(node)
    stage.ask("r1")
    stage.ask("r2")
    stage.estimate("a")
    stage.estimate("b")
    assert stage.estimate("c") == [load(1, "a")]
    assert stage.done(1, fault=BROKEN) == [load(2, "b")]
    out = stage.done(2, fault=Fault("insufficient_memory", "too little"))
    assert [type(one) for one in out] == [Refuse, Refuse]
    fault = refusal(out[:1])
    assert "on a: the file is damaged; on b: too little" in fault.message
    assert fault.retry_after_s == 5


def test_a_request_can_tell_how_much_of_its_wait_was_for_loads():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b", model("x", gb=9, running=1))
    stage.ask("r1")
    stage.estimate("a")
    stage.estimate("b")
    stage.now += 3
    stage.done(1, fault=BROKEN)
    stage.now += 2
    assert stage.observe("b", model("m")) == [sent("r1", "b", load_s=3.0)]


def test_each_newcomer_gets_a_second_try_whatever_failed_before_it_came():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b")
    stage.ask("r1")
    stage.estimate("a")
    stage.estimate("b")
    stage.done(1, fault=BROKEN)
    stage.end("r1")
    assert stage.done(2, fault=BROKEN) == []
    stage.now += 10
    assert stage.ask("r2") == [ReadState(3, "a")]
    assert stage.done(3) == [load(4, "a")]
    assert stage.done(4, fault=BROKEN) == [ReadState(5, "b")]
    assert stage.done(5) == [load(6, "b")]


def test_during_the_back_off_requests_are_refused_at_once_with_the_cause():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    stage.done(1, fault=BROKEN)
    stage.now += 2
    fault = refusal(stage.ask("r2"))
    assert fault.code == "no_capacity"
    assert "the file is damaged" in fault.message
    assert fault.retry_after_s == 3


def test_after_the_back_off_it_is_tried_again():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    stage.done(1, fault=BROKEN)
    stage.now += 5
    assert stage.ask("r2") == [ReadState(2, "a")]
    assert stage.done(2) == [load(3, "a")]


def test_during_the_back_off_another_node_may_be_tried():
    stage = Stage("a b")
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    stage.done(1, fault=BROKEN)
    stage.observe("b")
    assert stage.ask("r2") == [Estimate("m", "b")]
    assert stage.estimate("b") == [load(2, "b")]


def test_a_node_lost_during_a_load_is_replaced_and_not_blamed():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b")
    stage.ask("r1")
    stage.estimate("a")
    stage.estimate("b")
    assert stage.lose("a") == []
    assert stage.done(1, fault=Fault("node_unavailable", "lost")) == [load(2, "b")]
    assert stage.done(2, model("m")) == [sent("r1", "b", load_s=0.0)]


def test_a_node_that_restarts_during_a_load_is_given_it_again():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    assert stage.observe("a", boot="b2") == [Estimate("m", "a")]
    assert stage.estimate("a") == [load(2, "a")]
    assert stage.done(1, fault=ILL) == []


def test_a_load_that_ends_without_a_word_is_looked_for_in_the_nodes_state():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    assert stage.done(1) == [ReadState(2, "a")]
    assert stage.observe("a", model("m")) == [sent("r1", "a", load_s=0.0)]


def test_a_load_that_nobody_waits_for_any_more_goes_on_and_the_model_stays():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    assert stage.end("r1") == []
    assert stage.done(1, model("m")) == []
    assert stage.ask("r2") == [sent("r2", "a")]


def test_somebody_who_was_quicker_is_looked_at_before_anything_else():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    assert stage.done(1, fault=CONFLICT) == [ReadState(2, "a")]
    assert stage.observe("a", model("x", gb=1), holdings=3) == []
    assert stage.done(2) == [load(3, "a", holdings=3)]


def test_somebody_who_was_quicker_with_the_same_model_is_thanked():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    stage.done(1, fault=CONFLICT)
    assert stage.observe("a", model("m"), holdings=3) == [sent("r1", "a", load_s=0.0)]
    assert stage.done(2) == []


def test_a_node_that_others_keep_changing_is_left_to_them_for_a_second():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    stage.done(1, fault=CONFLICT)
    stage.done(2)
    stage.done(3, fault=CONFLICT)
    stage.done(4)
    assert stage.done(5, fault=CONFLICT) == []
    assert stage.later(0.9) == []
    assert stage.later(0.1) == [ReadState(6, "a")]

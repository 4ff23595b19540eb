"""Where requests go, and what is loaded for those that can go nowhere yet."""

from __future__ import annotations

import pytest

from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.events import (
    DrainWanted,
    Estimate,
    Instruction,
    Load,
    ReadState,
    Refuse,
    Send,
)
from cortex_core.fleet.placement import Placement
from tests.unit.core.fleet_playbook import CONFLICT, ILL, Stage, model, sent

NOT_FOUND = Fault("model_not_found", "no such file", "model")
BROKEN = Fault("gguf_corrupt", "the file is damaged")


def load(order: int, to: str, name: str = "m", holdings: int = 0) -> Load:
    return Load(order, name, to, "cuda:0", holdings)


def refusal(instructions: list[Instruction]) -> Fault:
    assert len(instructions) == 1
    assert isinstance(instructions[0], Refuse)
    return instructions[0].fault


# ready replicas


def test_a_request_for_a_ready_model_is_sent_and_nothing_else():
    stage = Stage()
    stage.observe("a", model("m"))
    assert stage.ask("r1") == [sent("r1", "a")]
    assert stage.wakes == []


def test_an_alias_goes_where_its_model_is():
    stage = Stage(aliases={"fast": "m"})
    stage.observe("a", model("m"))
    assert stage.ask("r1", "fast") == [sent("r1", "a")]


def test_requests_go_to_the_least_loaded_replica():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b", model("m"))
    assert [stage.ask(f"r{n}") for n in (1, 2)] == [[sent("r1", "a")], [sent("r2", "b")]]
    stage.end("r2")
    assert stage.ask("r3") == [sent("r3", "b")]


def test_a_conversation_stays_with_its_replica():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b", model("m"))
    stage.ask("r1")
    stage.ask("r2", prefix=(1, 2, 3))
    stage.end("r1")
    assert stage.ask("r3", prefix=(1, 2, 3, 4)) == [sent("r3", "b")]


def test_a_reloaded_model_has_no_conversation_left():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b", model("m"))
    stage.ask("r1")
    stage.ask("r2", prefix=(1, 2, 3))
    stage.end("r1")
    stage.end("r2")
    stage.observe("b")
    stage.observe("b", model("m"))
    assert stage.ask("r3", prefix=(1, 2, 3, 4)) == [sent("r3", "a")]


@pytest.mark.parametrize("by", ["the node", "an operator"])
def test_a_draining_node_gets_nothing_new(by: str):
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b", model("m"))
    if by == "the node":
        stage.observe("a", model("m"), draining=True)
    else:
        stage.play(DrainWanted("a", True))
    assert [stage.ask(f"r{n}") for n in (1, 2)] == [[sent("r1", "b")], [sent("r2", "b")]]


def test_a_lost_node_is_unroutable_and_its_models_not_forgotten():
    stage = Stage("a")
    stage.observe("a", model("m"))
    stage.lose("a")
    fault = refusal(stage.ask("r1"))
    assert fault.code == "node_unavailable"
    assert "only on unreachable nodes: a (silent for 6 s)" in fault.message
    stage.observe("a", model("m"))
    assert stage.ask("r2") == [sent("r2", "a")]


# refusals


def test_an_unknown_model_is_refused_with_the_nearest_names_and_nobody_is_asked():
    stage = Stage(models=("qwen/qwen3-8b", "mistral"))
    stage.observe("a")
    fault = refusal(stage.ask("r1", "qwen/qwen3-8"))
    assert fault.code == "model_not_found"
    assert fault.param == "model"
    assert "did you mean 'qwen/qwen3-8b'?" in fault.message
    assert "known models: mistral, qwen/qwen3-8b" in fault.message


def test_a_model_that_no_node_finds_is_unknown_too():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b")
    stage.ask("r1")
    assert stage.estimate("a", fault=NOT_FOUND) == []
    assert refusal(stage.estimate("b", fault=NOT_FOUND)).code == "model_not_found"


def test_a_model_too_large_for_every_node_is_refused_with_each_nodes_cause():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b")
    stage.ask("r1")
    stage.estimate("a", gb=40)
    fault = refusal(stage.estimate("b", fault=BROKEN))
    assert fault.code == "no_capacity"
    assert "a: " in fault.message
    assert "in all" in fault.message
    assert "b: cannot load it: the file is damaged" in fault.message


def test_without_a_node_in_reach_every_cause_is_told():
    stage = Stage("a")
    stage.lose("a")
    fault = refusal(stage.ask("r1"))
    assert fault.code == "node_unavailable"
    assert "a: silent for 6 s" in fault.message


def test_a_full_line_says_when_to_come_back():
    stage = Stage(max_waiting=1)
    stage.observe("a")
    stage.ask("r1")
    fault = refusal(stage.ask("r2"))
    assert fault.code == "rate_limit_exceeded"
    assert fault.retry_after_s


def test_nobody_waits_longer_than_is_allowed():
    stage = Stage(max_wait_s=20)
    stage.observe("a", model("x", "loading"))
    stage.ask("r1")
    stage.estimate("a")
    assert stage.later(19.9) == []
    fault = refusal(stage.later(0.2))
    assert fault.code == "no_capacity"
    assert fault.retry_after_s


def test_who_waited_in_vain_for_a_load_is_told_that_it_goes_on():
    stage = Stage(max_wait_s=20)
    stage.observe("a", model("m", "loading"))
    stage.ask("r1")
    assert refusal(stage.later(20)).code == "model_loading"


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


# explaining


def test_a_decision_is_explained_without_acting():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b")
    stage.ask("r1")
    told = stage.conductor.explain("m", stage.now)
    assert [replica.node for replica in told.replicas] == ["a"]
    assert not isinstance(told.decision, Placement)
    assert "the model is ready there" in told.decision.causes["a"]
    assert stage.conductor.loads == []


def test_a_request_can_tell_what_happened_to_it():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b")
    stage.ask("r1")
    stage.estimate("a")
    stage.estimate("b")
    stage.done(1, fault=BROKEN)
    stage.done(2, model("m"))
    stage.fail("r1")
    stage.later(1)
    assert [line.text for line in stage.conductor.story("r1")] == [
        "waits for a load on a",
        "the load on a failed: the file is damaged",
        "waits for a load on b",
        "sent to b on cuda:0",
        "failed by b: the connection broke",
        "refused: the connection broke",
    ]


def test_what_is_under_way_can_be_asked():
    stage = Stage()
    stage.observe("a")
    stage.ask("r1")
    assert stage.conductor.waiting == {"m": 1}
    stage.estimate("a")
    (under_way,) = stage.conductor.loads
    assert (under_way.model, under_way.node, under_way.step) == ("m", "a", "load")
    stage.done(1, model("m"))
    assert stage.conductor.loads == []
    assert stage.conductor.in_flight("a") == 1


def test_where_a_model_would_fit_is_known_once_the_nodes_have_said_so():
    stage = Stage("a b c")
    for node in "abc":
        stage.observe(node, model("x", gb=9))
    assert stage.conductor.feasible_on("m", stage.now) == []
    stage.ask("r1")
    stage.estimate("a", gb=4)
    stage.estimate("b", gb=40)
    assert stage.conductor.feasible_on("m", stage.now) == ["a"]
    assert stage.conductor.feasible_on("x", stage.now) == ["a", "b", "c"]
    stage.lose("a")
    assert stage.conductor.feasible_on("m", stage.now) == []


def test_what_cannot_be_answered_is_known_without_asking():
    stage = Stage()
    stage.observe("a", model("x"))
    unknown = stage.conductor.unanswerable("nobody", stage.now)
    assert unknown is not None
    assert unknown.code == "model_not_found"
    assert stage.conductor.unanswerable("x", stage.now) is None
    assert stage.conductor.unanswerable("m", stage.now) is None
    stage.ask("r1")
    stage.estimate("a", gb=40)
    tried = stage.conductor.unanswerable("m", stage.now)
    assert tried is not None
    assert tried.code == "no_capacity"

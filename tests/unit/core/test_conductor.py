"""Where requests go, why they go nowhere, and what can be asked about them."""

from __future__ import annotations

import pytest

from cortex_core.fleet.events import DrainWanted
from cortex_core.fleet.placement import Placement
from tests.unit.core.fleet_playbook import (
    BROKEN,
    NOT_FOUND,
    Stage,
    model,
    refusal,
    sent,
)

# ready replicas


def test_a_request_for_a_ready_model_is_sent_and_nothing_else():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.wakes.clear()
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


def test_a_model_is_not_called_unknown_while_a_node_has_never_spoken():
    stage = Stage("a b c", models=("qwen/qwen3-8b",))
    stage.observe("a")
    stage.lose("b")
    fault = refusal(stage.ask("r1", "qwen/qwen3-8"))
    assert fault.code == "node_unavailable"
    assert "has the model 'qwen/qwen3-8'; did you mean 'qwen/qwen3-8b'?" in fault.message
    assert "not heard of yet: b (silent for 6 s), c (not contacted yet)" in fault.message
    stage.observe("b")
    stage.lose("b")
    stage.observe("c")
    assert refusal(stage.ask("r2", "qwen/qwen3-8")).code == "model_not_found"


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


def test_a_place_can_tell_what_happened_there():
    stage = Stage(models=("m", "old"))
    stage.observe("a", model("old", gb=8))
    stage.ask("r1")
    stage.estimate("a")
    stage.done(1)
    stage.observe("a")
    stage.done(2)
    stage.done(3, model("m"))
    assert [line.text for line in stage.conductor.history("old", "a")] == [
        "found ready on cuda:0",
        "makes room for m",
        "unloading",
        "unloaded",
    ]
    assert [line.text for line in stage.conductor.history("m", "a")] == [
        "chosen: a cuda:0, since it fits nowhere else; before it, old must leave",
        "loading",
        "ready on cuda:0",
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

"""What is done though nobody waits for it: operators' wishes, replicas, time that is up."""

from __future__ import annotations

from cortex_core.config.gateway import EvictionSection
from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.events import (
    Done,
    DrainWanted,
    Estimate,
    Instruction,
    Load,
    LoadWanted,
    OrderEnded,
    PinWanted,
    ReadState,
    Refuse,
    Restart,
    Unload,
    UnloadWanted,
    WakeAt,
)
from cortex_core.fleet.ledger import Ledger
from tests.unit.core.fleet_playbook import CONFLICT, Stage, load, model, refusal, sent

# an operator's loads


def test_an_operators_load_goes_where_the_operator_says():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b")
    stage.later(1)
    stage.estimate("a")
    assert stage.play(LoadWanted("o1", "m", "b")) == []
    assert stage.estimate("b") == [load(1, "b")]
    assert stage.done(1, model("m")) == [sent("o1", "b", load_s=0.0)]


def test_an_operators_load_of_a_ready_model_is_answered_at_once():
    stage = Stage()
    stage.observe("a", model("m"))
    assert stage.play(LoadWanted("o1", "m")) == [sent("o1", "a")]


def test_a_model_ready_elsewhere_does_not_answer_an_operator_who_named_a_node():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b")
    assert stage.play(LoadWanted("o1", "m", "b")) == [Estimate("m", "b")]
    assert stage.estimate("b") == [load(1, "b")]


def test_an_operator_may_load_what_nobody_has_listed_with_options():
    stage = Stage()
    stage.observe("a")
    options = {"context": 512}
    assert stage.play(LoadWanted("o1", "other/model", None, options)) == [
        Estimate("other/model", "a", options)
    ]
    assert stage.estimate("a", "other/model") == [Load(1, "other/model", "a", "cuda:0", 0, options)]


def test_an_operators_load_that_cannot_be_is_refused_with_its_cause():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b", model("x", gb=9))
    stage.play(DrainWanted("a", True))
    (refused,) = stage.play(LoadWanted("o1", "m", "a"))
    assert isinstance(refused, Refuse)
    assert "a: is draining" in refused.fault.message


def test_a_node_that_an_operator_named_and_that_is_gone_is_not_waited_for():
    stage = Stage("a b")
    stage.observe("b", model("x", gb=9, running=1))
    stage.play(LoadWanted("o1", "m", "b"))
    stage.estimate("b")
    (refused,) = _configured(stage, stage.catalogue, "a")
    assert isinstance(refused, Refuse)
    assert refused.fault.code == "node_unavailable"
    assert "no node is called 'b'; configured: a" in refused.fault.message


def test_an_operators_load_takes_as_long_as_it_takes():
    """Somebody else's patience does not end it: a download may take hours."""
    stage = Stage(max_wait_s=10)
    stage.observe("a")
    stage.play(LoadWanted("o1", "m"))
    assert stage.estimate("a") == [load(1, "a")]
    stage.ask("r1")
    refused = [each for each in stage.later(11) if isinstance(each, Refuse)]
    assert [(each.request, each.fault.code) for each in refused] == [("r1", "model_loading")]
    assert not any(isinstance(each, Refuse) for each in stage.later(3600))
    assert stage.done(1, model("m")) == [sent("o1", "a", load_s=3611.0)]


def test_an_operators_load_waits_for_another_load_as_long_as_that_takes():
    stage = Stage(models=("m", "n"), max_wait_s=10)
    stage.observe("a")
    stage.play(LoadWanted("o1", "m"))
    assert stage.estimate("a") == [load(1, "a")]
    stage.play(LoadWanted("o2", "n"))
    stage.estimate("a", "n")
    assert stage.later(3600) == []
    assert stage.done(1, model("m")) == [sent("o1", "a", load_s=3600.0), ReadState(2, "a")]


def test_an_operators_load_waits_for_room_as_long_as_anybody_may():
    stage = Stage("a b", models=("m", "x"), max_wait_s=10)
    stage.observe("a", model("m", "loading"))
    stage.observe("b", model("x", gb=8, running=1))
    stage.play(LoadWanted("o1", "m", "b"))
    stage.estimate("b")
    fault = refusal(stage.later(10))
    assert (fault.code, fault.message) == (
        "no_capacity",
        "there was no room for the model 'm' within 10 s",
    )


# an operator's unloads


def test_an_operators_unload_lets_the_model_finish():
    stage = Stage()
    stage.observe("a", model("m"), holdings=4)
    stage.ask("r1")
    out = stage.play(UnloadWanted("o1", "m"))
    assert out == [Unload(1, "m", "a", 4, if_idle=False, reason="operator")]
    stage.end("r1")
    assert stage.done(1) == [Done("o1")]


def test_an_unload_without_a_node_concerns_every_node():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b", model("m"))
    out = stage.play(UnloadWanted("o1", "m"))
    assert [one.node for one in out if isinstance(one, Unload)] == ["a", "b"]
    assert stage.done(1) == []
    assert stage.done(2) == [Done("o1")]


def test_the_story_of_an_unload_names_the_model_as_it_was_called():
    stage = Stage()
    stage.observe("a")
    fault = refusal(stage.play(UnloadWanted("o1", "{x}")))
    assert "'{x}'" in fault.message
    assert [line.text for line in stage.conductor.story("o1")] == [fault.message]


def test_an_operator_may_unload_what_is_pinned():
    stage = Stage(models=(ModelEntry(id="m", pinned=True),))
    stage.observe("a", model("m"))
    assert isinstance(stage.play(UnloadWanted("o1", "m"))[0], Unload)


def test_what_is_nowhere_cannot_be_unloaded():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b")
    (refused,) = stage.play(UnloadWanted("o1", "m", "b"))
    assert isinstance(refused, Refuse)
    assert refused.fault.code == "model_not_found"
    assert "not on the node b" in refused.fault.message


def test_a_model_on_an_unreachable_node_cannot_be_unloaded():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.lose("a")
    (refused,) = stage.play(UnloadWanted("o1", "m"))
    assert isinstance(refused, Refuse)
    assert refused.fault.code == "node_unavailable"


def test_an_unload_waits_for_what_is_under_way_on_its_node():
    stage = Stage(models=("m", "n"))
    stage.observe("a", model("n"))
    stage.ask("r1")
    stage.estimate("a")
    assert stage.play(UnloadWanted("o1", "n")) == []
    out = stage.done(1, model("m"))
    assert out == [sent("r1", "a", load_s=0.0), Unload(2, "n", "a", 0, False, "operator")]


def test_an_unload_that_somebody_else_was_quicker_with_is_done():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.play(UnloadWanted("o1", "m"))
    assert stage.done(1, fault=CONFLICT) == [ReadState(2, "a")]
    stage.observe("a", holdings=1)
    assert stage.done(2) == [Done("o1")]


def test_an_unload_is_ordered_again_after_somebody_else_changed_the_node():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.play(UnloadWanted("o1", "m"))
    stage.done(1, fault=CONFLICT)
    stage.observe("a", model("m"), model("x", gb=1), holdings=1)
    assert stage.done(2) == [Unload(3, "m", "a", 1, False, "operator")]


def test_a_model_that_leaves_by_itself_while_its_unload_waits_is_unloaded():
    stage = Stage(models=("m", "n"))
    stage.observe("a", model("n"))
    stage.ask("r1")
    stage.estimate("a")
    stage.play(UnloadWanted("o1", "n"))
    assert stage.observe("a", model("m", "loading")) == [Done("o1")]


def test_an_unload_that_fails_says_so():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.play(UnloadWanted("o1", "m"))
    fault = Fault("upstream_failed", "it broke")
    assert stage.done(1, fault=fault) == [Refuse("o1", fault)]
    assert stage.ask("r1") == [sent("r1", "a")]


# pins and replicas


AT_HOME = ModelEntry(id="m", pinned_on=("a",))


def test_a_model_is_loaded_on_the_node_it_is_pinned_on_when_that_appears():
    stage = Stage("a b", models=(AT_HOME,))
    assert stage.observe("b") == []
    assert stage.observe("a") == [Estimate("m", "a")]
    assert load(1, "a") in stage.estimate("a")


def test_a_model_that_is_pinned_on_a_node_evicts_nothing_without_a_request():
    stage = Stage("a", models=(AT_HOME, "x"))
    stage.observe("a", model("x", gb=9))
    assert stage.estimate("a") == []
    assert stage.ask("r1") == [Unload(1, "x", "a", 0)]


def test_a_kept_model_that_fails_to_load_is_tried_again_after_its_back_off():
    stage = Stage("a", models=(AT_HOME,))
    stage.observe("a")
    stage.estimate("a")
    assert stage.done(1, fault=Fault("gguf_corrupt", "damaged")) == []
    assert stage.later(4.9) == []
    assert stage.later(0.1) == [ReadState(2, "a")]
    assert stage.done(2) == [load(3, "a")]


def test_a_kept_model_whose_room_vanished_evicts_nothing_after_all():
    stage = Stage("a", models=(AT_HOME, "x"))
    stage.observe("a")
    stage.estimate("a")
    stage.done(1, fault=Fault("gguf_corrupt", "damaged"))
    assert stage.later(5) == [ReadState(2, "a")]
    stage.observe("a", model("x", gb=9))
    assert stage.done(2) == []


def test_a_model_wanted_twice_gets_its_second_replica_once_somebody_asks():
    stage = Stage("a b", models=(ModelEntry(id="m", replicas=2),))
    stage.observe("a", model("m"))
    assert stage.observe("b") == []
    stage.ask("r1")
    assert stage.later(1) == [Estimate("m", "b")]
    assert stage.estimate("b") == [load(1, "b")]


def test_a_model_with_too_much_to_do_gets_another_replica_where_there_is_free_room():
    stage = Stage("a b", models=("m",))
    stage.observe("a", model("m", parallel=1))
    stage.observe("b")
    stage.ask("r1")
    stage.ask("r2")
    assert stage.later(1) == [Estimate("m", "b")]
    assert stage.estimate("b") == []
    assert stage.later(4.9) == []
    assert stage.later(0.1) == [load(1, "b")]


def test_a_further_replica_evicts_nothing():
    stage = Stage("a b", models=("m", "x"))
    stage.observe("a", model("m", parallel=1))
    stage.observe("b", model("x", gb=9))
    stage.ask("r1")
    stage.ask("r2")
    stage.later(1)
    stage.estimate("b")
    assert stage.later(5) == []


# time that is up


def test_a_model_that_nobody_asked_for_in_its_time_is_unloaded():
    stage = Stage(models=(ModelEntry(id="m", ttl_s=60),))
    stage.observe("a", model("m"))
    stage.ask("r1")
    stage.now += 100
    stage.end("r1")
    assert stage.later(59) == []
    assert stage.later(1) == [Unload(1, "m", "a", 0, True, "ttl")]


def test_a_tick_is_wished_for_when_a_models_time_is_up():
    stage = Stage(models=(ModelEntry(id="m", ttl_s=60),))
    stage.observe("a", model("m"))
    stage.later(1)
    assert stage.wakes[-1] == stage.now + 59


def test_a_pinned_model_has_no_end():
    stage = Stage(models=(ModelEntry(id="m", ttl_s=60),))
    stage.play(PinWanted("m", True))
    stage.observe("a", model("m"))
    assert stage.later(100) == []


def test_a_model_that_turned_out_to_be_used_stays():
    stage = Stage(models=(ModelEntry(id="m", ttl_s=60),))
    stage.observe("a", model("m"))
    stage.later(60)
    stage.ask("r1")
    assert stage.done(1, fault=CONFLICT) == [sent("r1", "a")]


def test_a_worker_that_has_loaded_and_unloaded_enough_is_restarted_when_it_is_empty():
    stage = Stage(eviction=EvictionSection(defrag_after_cycles=2))
    stage.observe("a")
    stage.ask("r1")
    stage.estimate("a")
    stage.done(1, model("m"))
    stage.end("r1")
    stage.play(UnloadWanted("o1", "m"))
    assert stage.done(2) == [Done("o1"), Restart(3, "a", "cuda:0")]
    assert stage.ask("r2") == []
    assert stage.done(3) == [ReadState(4, "a")]
    assert stage.done(4) == [load(5, "a")]


# another configuration


def _configured(stage: Stage, catalogue: Catalogue, *nodes: str) -> list[Instruction]:
    out = stage.conductor.configured(catalogue, stage.policy, nodes, stage.now)
    return [one for one in out if not isinstance(one, WakeAt)]


def test_a_new_node_is_used_as_soon_as_it_speaks():
    stage = Stage("a")
    stage.observe("a", model("x", gb=9, running=1))
    stage.ask("r1")
    stage.estimate("a")
    assert _configured(stage, stage.catalogue, "a", "b") == []
    assert stage.observe("b") == [Estimate("m", "b")]
    assert stage.estimate("b") == [load(1, "b")]


def test_a_request_on_a_node_that_is_no_longer_configured_goes_on():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b", model("m"))
    stage.ask("r1")
    assert _configured(stage, stage.catalogue, "b") == []
    assert stage.ask("r2") == [sent("r2", "b")]
    assert stage.end("r1") == []
    assert stage.observe("a", model("m")) == []


def test_a_request_that_outlives_its_nodes_absence_is_not_counted_on_the_one_that_came_back():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.ask("r1")
    _configured(stage, stage.catalogue, "b")
    _configured(stage, stage.catalogue, "a", "b")
    stage.observe("a", model("m"))
    assert stage.ask("r2") == [sent("r2", "a")]
    stage.end("r1")
    assert stage.conductor.in_flight("a") == 1


def test_a_request_that_its_node_failed_may_go_to_the_one_that_came_back():
    stage = Stage("a b")
    stage.observe("a", model("m"))
    stage.observe("b")
    stage.ask("r1")
    stage.fail("r1")
    _configured(stage, stage.catalogue, "b")
    _configured(stage, stage.catalogue, "a", "b")
    assert stage.observe("a", model("m")) == [sent("r1", "a")]


def test_a_load_on_a_node_that_is_no_longer_configured_is_begun_elsewhere():
    stage = Stage("a b")
    stage.observe("a")
    stage.observe("b")
    stage.ask("r1")
    stage.estimate("a")
    stage.estimate("b")
    assert _configured(stage, stage.catalogue, "b") == [load(2, "b")]
    assert stage.play(OrderEnded(1, None, model("m"))) == []


def test_a_new_alias_leads_to_its_model_and_a_stream_is_not_disturbed():
    stage = Stage()
    stage.observe("a", model("m"))
    stage.ask("r1")
    assert _configured(stage, Catalogue([ModelEntry(id="m")], {"fast": "m"}), "a") == []
    assert stage.ask("r2", "fast") == [sent("r2", "a")]
    assert stage.conductor.in_flight("a") == 2


def test_a_model_with_other_options_is_asked_about_again():
    stage = Stage()
    stage.observe("a", model("x", gb=9, running=1))
    stage.ask("r1")
    stage.estimate("a")
    smaller = Catalogue([ModelEntry(id="m", context=512)])
    assert _configured(stage, smaller, "a") == [Estimate("m", "a", {"context": 512})]


def test_a_pin_and_a_drain_can_be_read_back():
    stage = Stage("a", aliases={"fast": "m"})
    stage.play(PinWanted("fast", True))
    stage.play(DrainWanted("a", True))
    assert stage.conductor.pins == {"m"}
    assert stage.conductor.drained == {"a"}
    stage.play(PinWanted("m", False))
    stage.play(DrainWanted("a", False))
    assert stage.conductor.pins == stage.conductor.drained == frozenset()


def test_what_was_learned_before_a_restart_is_used_without_asking_again():
    stage = Stage()
    stage.observe("a", model("m"))
    rows = stage.conductor.ledger.export()
    ledger = Ledger()
    ledger.configured([ModelEntry(id="m")])
    ledger.restore(rows)
    assert ledger.needs("m", "a", ["cuda:0"]) == {"cuda:0": 4_000_000_000}

"""What makes room for what, step by step, and what does not."""

from __future__ import annotations

from cortex_core.config.gateway import EvictionSection
from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.events import Load, PinWanted, ReadState, Refuse, Unload
from tests.unit.core.fleet_playbook import CONFLICT, Stage, model, sent


def _full(*entries: ModelEntry | str, eviction: EvictionSection | None = None) -> Stage:
    """One node whose 10 GB are all but taken by `old` (8 GB); `m` would take 4."""
    stage = Stage(models=entries or ("m", "old"), eviction=eviction or EvictionSection())
    stage.observe("a", model("old", gb=8), holdings=1)
    return stage


def _unload(order: int, name: str = "old", holdings: int = 1) -> Unload:
    return Unload(order, name, "a", holdings)


def _load(order: int, holdings: int, name: str = "m") -> Load:
    return Load(order, name, "a", "cuda:0", holdings)


def test_an_idle_model_makes_room_and_the_memory_is_read_before_the_load():
    stage = _full()
    stage.ask("r1")
    assert stage.estimate("a") == [_unload(1)]
    assert stage.done(1) == [ReadState(2, "a")]
    assert stage.observe("a", holdings=2) == []
    assert stage.done(2) == [_load(3, 2)]
    assert stage.done(3, model("m")) == [sent("r1", "a", load_s=0.0)]


def test_victims_leave_one_after_the_other_and_only_as_many_as_it_takes():
    stage = Stage(models=("m", "x", "y", "z"))
    stage.observe("a", *(model(name, gb=3) for name in "xyz"))
    stage.ask("r1")
    assert stage.estimate("a", gb=6.5) == [_unload(1, "x", 0)]
    stage.done(1)
    # Somebody outside the fleet has given memory back meanwhile: the second victim may stay.
    stage.observe("a", model("y", gb=1.5), model("z", gb=1.5))
    assert stage.done(2) == [_load(3, 0)]


def test_memory_that_did_not_come_free_takes_another_victim():
    stage = Stage(models=("m", "x", "y"))
    stage.observe("a", model("x", gb=5), model("y", gb=5))
    stage.ask("r1")
    assert stage.estimate("a", gb=5) == [_unload(1, "x", 0)]
    stage.done(1)
    stage.observe("a", model("y", gb=5.5))
    assert stage.done(2) == [_unload(3, "y", 0)]


def test_nothing_is_evicted_for_those_who_left():
    stage = _full()
    stage.ask("r1")
    stage.end("r1", has_answer=False)
    assert stage.estimate("a") == []


def test_when_all_have_left_after_the_first_victim_the_rest_stay():
    stage = Stage(models=("m", "x", "y"))
    stage.observe("a", model("x", gb=5), model("y", gb=5))
    stage.ask("r1")
    stage.ask("r2")
    assert stage.estimate("a", gb=9) == [_unload(1, "x", 0)]
    stage.end("r1")
    stage.end("r2")
    stage.done(1)
    stage.observe("a", model("y", gb=5))
    assert stage.done(2) == []
    texts = [line.text for line in stage.conductor.history("m", "a")]
    assert texts[-1] == "nobody waits for it any more"


def test_nine_of_ten_leave_and_the_tenth_is_served():
    stage = _full()
    for number in range(10):
        stage.ask(f"r{number}")
    stage.estimate("a")
    for number in range(9):
        stage.end(f"r{number}")
    stage.done(1)
    stage.observe("a", holdings=2)
    stage.done(2)
    assert stage.done(3, model("m")) == [sent("r9", "a", load_s=0.0)]


def test_a_model_being_evicted_gets_no_requests():
    stage = _full()
    stage.ask("r1")
    stage.estimate("a")
    assert stage.ask("r2", "old") == []


def test_a_busy_model_is_waited_for_not_killed():
    stage = _full()
    stage.ask("r1", "old")
    stage.ask("r2")
    assert stage.estimate("a") == []
    assert stage.later(10) == []
    assert stage.end("r1") == [_unload(1)]


def test_a_model_that_others_use_is_busy_too():
    stage = _full()
    stage.observe("a", model("old", gb=8, running=1), holdings=1)
    stage.ask("r1")
    assert stage.estimate("a") == []
    assert stage.observe("a", model("old", gb=8), holdings=1) == [_unload(1)]


def test_a_victim_that_turned_out_busy_stays_and_is_sent_requests_again():
    stage = _full()
    stage.ask("r1")
    stage.estimate("a")
    stage.ask("r2", "old")
    assert stage.done(1, fault=CONFLICT) == [ReadState(2, "a"), sent("r2", "a", "old")]


def test_after_a_while_a_busy_model_gets_no_new_requests_so_that_it_can_finish():
    stage = _full(eviction=EvictionSection(drain_after_s=30))
    stage.ask("r1", "old")
    stage.ask("r2")
    stage.estimate("a")
    assert stage.later(29) == []
    assert stage.ask("r3", "old") == [sent("r3", "a", "old")]
    assert stage.later(1) == []
    assert stage.ask("r4", "old") == []
    assert stage.end("r1") == []
    assert stage.end("r3") == [_unload(1)]


def test_a_model_that_is_let_finish_gets_requests_again_when_nobody_waits_for_its_room():
    stage = _full(eviction=EvictionSection(drain_after_s=30))
    stage.ask("r1", "old")
    stage.ask("r2")
    stage.estimate("a")
    stage.later(30)
    stage.ask("r3", "old")
    assert stage.end("r2") == [sent("r3", "a", "old")]


def test_after_a_swap_the_model_that_left_may_come_back():
    stage = _full(eviction=EvictionSection(min_residency_s=10))
    stage.ask("r1")
    stage.estimate("a")
    stage.ask("r2", "old")
    stage.done(1)
    stage.observe("a", holdings=2)
    stage.estimate("a", "old", gb=8)
    stage.done(2)
    assert stage.done(3, model("m")) == [
        sent("r1", "a", load_s=0.0),
        ReadState(4, "a"),
    ]
    stage.observe("a", model("m"), holdings=3)
    stage.end("r1")
    stage.done(4)
    assert stage.later(9.9) == []
    assert stage.later(0.1) == [_unload(5, "m", 3)]


def test_what_the_catalogue_pins_is_never_evicted():
    stage = _full("m", ModelEntry(id="old", pinned=True))
    stage.ask("r1")
    (refused,) = stage.estimate("a")
    assert isinstance(refused, Refuse)
    assert refused.fault.code == "no_capacity"
    assert "old is pinned" in refused.fault.message


def test_what_an_operator_pins_is_not_evicted_until_it_is_unpinned():
    stage = _full()
    stage.play(PinWanted("old", True))
    stage.ask("r1")
    assert isinstance(stage.estimate("a")[0], Refuse)
    stage.play(PinWanted("old", False))
    assert stage.ask("r2") == [_unload(1)]


def test_a_higher_class_does_not_make_room_for_a_lower():
    stage = _full("m", ModelEntry(id="old", residency_priority=1))
    stage.ask("r1")
    assert isinstance(stage.estimate("a")[0], Refuse)


def test_a_victim_that_cannot_be_unloaded_fails_the_plan_not_the_node():
    stage = _full()
    stage.ask("r1")
    stage.estimate("a")
    (refused,) = stage.done(1, fault=Fault("upstream_failed", "it broke"))
    assert isinstance(refused, Refuse)
    assert "old could not be unloaded: it broke" in refused.fault.message
    assert stage.ask("r2", "old") == [sent("r2", "a", "old")]


def test_a_victim_that_is_gone_already_is_as_good_as_unloaded():
    stage = _full()
    stage.ask("r1")
    stage.estimate("a")
    assert stage.done(1, fault=Fault("model_not_found", "gone")) == [ReadState(2, "a")]


def test_a_memory_that_cannot_be_read_stops_the_plan_and_is_read_again_later():
    stage = _full()
    stage.ask("r1")
    stage.estimate("a")
    stage.done(1)
    assert stage.done(2, fault=Fault("upstream_failed", "it broke")) == []
    assert stage.later(1) == [ReadState(3, "a")]


def test_room_that_vanished_meanwhile_starts_nothing_on_that_node():
    stage = Stage(models=("m", "old"))
    stage.observe("a", model("old", gb=6), model("stays", gb=4, running=1))
    stage.ask("r1")
    assert stage.estimate("a", gb=6) == [_unload(1, holdings=0)]
    stage.done(1)
    stage.observe("a", model("stays", gb=4, running=1), model("new", gb=4, running=1))
    assert stage.done(2) == []
    assert stage.conductor.waiting == {"m": 1}
    assert stage.conductor.loads == []

"""One model on one node, from absent to absent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import Fault
from cortex_core.fleet.discovery import ModelPhase
from cortex_core.fleet.lifecycle import BACKOFF_MOST_S, Place, PlaceState
from tests.unit.core.fleet_playbook import model

BROKEN = Fault("gguf_corrupt", "the file is damaged")


class _Told:
    """A place and its story."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.place = Place("m", "a", lambda text, *values: self.lines.append(text.format(*values)))

    def hear(self, *phases: ModelPhase | None, now: float = 1.0) -> PlaceState:
        for phase in phases:
            self.place.heard(None if phase is None else model("m", phase), now)
        return self.place.state


@pytest.fixture
def told() -> _Told:
    return _Told()


def test_a_model_that_a_node_has_is_found_ready(told: _Told):
    assert told.hear("ready") == "ready"
    assert told.place.replica.device == "cuda:0"
    assert told.lines == ["found ready on cuda:0"]


def test_our_load_counts_from_the_order_on(told: _Told):
    told.place.ordered("load", 1.0)
    assert told.place.state == "loading"
    assert told.hear(None) == "loading"


def test_a_load_is_over_as_soon_as_the_node_says_so(told: _Told):
    told.place.ordered("load", 1.0)
    assert told.hear("loading", "ready") == "ready"


def test_the_node_may_be_slower_to_say_so_than_the_order_to_end(told: _Told):
    told.place.ordered("load", 1.0)
    told.place.loaded(model("m"), 4.0)
    assert told.place.state == "ready"
    assert told.place.loaded_at == 4.0


def test_a_model_found_on_a_node_has_been_there_for_ever(told: _Told):
    told.hear("ready", now=50.0)
    assert told.place.loaded_at == float("-inf")


def test_a_failed_load_is_remembered_with_its_cause(told: _Told):
    told.place.ordered("load", 1.0)
    told.place.failed(BROKEN, 2.0)
    assert told.place.state == "failed"
    assert told.place.cools_down(6.9)
    assert not told.place.cools_down(7.0)
    assert told.lines[-1] == "failed, not tried again for 5 s: the file is damaged"


def test_the_memory_of_a_failure_outlives_the_state(told: _Told):
    told.place.failed(BROKEN, 2.0)
    assert told.hear(None) == "absent"
    assert told.place.cools_down(3.0)


def test_each_failure_in_a_row_doubles_the_back_off_up_to_five_minutes(told: _Told):
    now, pauses = 0.0, []
    for _ in range(9):
        told.place.ordered("load", now)
        told.place.failed(BROKEN, now)
        assert told.place.retry_at is not None
        pauses.append(told.place.retry_at - now)
        now = told.place.retry_at
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, BACKOFF_MOST_S]


def test_a_load_that_succeeds_resets_the_back_off(told: _Told):
    told.place.failed(BROKEN, 1.0)
    told.place.ordered("load", 10.0)
    told.place.loaded(model("m"), 12.0)
    assert told.place.retry_at is None
    told.place.ordered("load", 20.0)
    told.place.heard(None, 20.0)
    told.place.failed(BROKEN, 20.0)
    assert told.place.retry_at == 25.0


def test_a_worker_that_dies_makes_its_model_recover_not_vanish(told: _Told):
    assert told.hear("ready", "recovering") == "recovering"
    assert told.place.is_coming
    assert told.hear("ready") == "ready"
    assert told.place.incarnation == 2


def test_a_model_that_is_let_finish_is_draining_until_the_wish_ends(told: _Told):
    told.hear("ready")
    assert told.place.drain("other", 1.0)
    assert told.place.state == "draining"
    assert told.place.drain(None, 2.0)
    assert told.place.state == "ready"
    assert told.place.incarnation == 1


def test_an_unload_takes_requests_away_at_once(told: _Told):
    told.hear("ready")
    told.place.ordered("unload", 1.0)
    assert told.place.state == "unloading"
    told.place.unloaded(2.0)
    assert told.place.state == "absent"


def test_an_unload_that_is_not_carried_out_leaves_the_model_as_it_was(told: _Told):
    told.hear("ready")
    told.place.loaded_at = 3.0
    told.place.ordered("unload", 4.0)
    told.place.withdrew(5.0)
    assert told.place.state == "ready"
    assert told.place.loaded_at == 3.0


def test_the_node_knows_of_users_that_we_do_not(told: _Told):
    told.place.heard(model("m", running=3), 1.0)
    assert told.place.users == 3
    told.place.busy = 5
    assert told.place.users == 5


def test_being_used_by_others_is_being_used(told: _Told):
    told.place.heard(model("m", running=1), 7.0)
    assert told.place.used_at == 7.0


PHASES = ["loading", "ready", "draining", "unloading", "recovering", "failed", None]


@given(st.lists(st.sampled_from(PHASES), min_size=1))
def test_whatever_a_node_says_is_believed(phases: list[ModelPhase | None]):
    told = _Told()
    for phase in phases:
        assert told.hear(phase) == (phase or "absent")


@pytest.mark.parametrize("before", PHASES)
@pytest.mark.parametrize("after", PHASES)
def test_every_phase_can_follow_every_other(
    told: _Told, before: ModelPhase | None, after: ModelPhase | None
):
    told.hear(before)
    assert told.hear(after) == (after or "absent")


def test_a_model_that_was_gone_meanwhile_is_another_incarnation(told: _Told):
    told.hear("ready", None, "ready")
    assert told.place.incarnation == 2

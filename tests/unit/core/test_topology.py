"""Where a request goes, and what a client hears when it can go nowhere."""

from __future__ import annotations

import pytest

from cortex_core.errors import (
    Fault,
    ModelLoading,
    ModelNotFound,
    NoCapacity,
    NodeUnavailable,
)
from cortex_core.fleet.discovery import ModelPhase, ModelState, NodeState
from cortex_core.fleet.topology import Replica, Topology


def _state(
    name: str,
    *models: tuple[str, ModelPhase],
    version: int = 1,
    boot: str = "b1",
    draining: bool = False,
    fault: Fault | None = None,
) -> NodeState:
    entries = [
        ModelState(id=model, device="cpu", phase=phase, path="/m.gguf", fault=fault)
        for model, phase in models
    ]
    return NodeState(name, boot, version, draining, [], entries)


@pytest.fixture
def topology() -> Topology:
    topology = Topology(["a", "b"])
    topology.observed("a", _state("a", ("m", "ready")))
    topology.observed("b", _state("b", ("m", "ready"), ("only-b", "ready")))
    return topology


def test_the_least_loaded_replica_is_chosen(topology: Topology):
    assert topology.route("m", {"a": 2, "b": 1}) == Replica("m", "b", "cpu")
    assert topology.route("m", {"a": 0, "b": 1}) == Replica("m", "a", "cpu")


def test_a_tie_goes_to_the_first_name(topology: Topology):
    assert topology.route("m", {}).node == "a"


def test_a_node_that_failed_this_request_is_avoided(topology: Topology):
    assert topology.route("m", {"b": 9}, avoid=frozenset({"a"})).node == "b"


def test_a_draining_node_gets_nothing_new(topology: Topology):
    topology.observed("a", _state("a", ("m", "ready"), version=2, draining=True))
    assert topology.route("m", {"b": 9}).node == "b"


def test_an_unknown_model_is_refused_by_name_with_what_is_known(topology: Topology):
    with pytest.raises(ModelNotFound, match=r"'nope'.*m, only-b") as caught:
        topology.route("nope", {})
    assert caught.value.param == "model"


def test_nothing_is_routable_before_first_contact():
    with pytest.raises(NodeUnavailable, match="a: not contacted yet"):
        Topology(["a"]).route("m", {})


def test_no_neurons_at_all_says_so():
    with pytest.raises(NodeUnavailable, match="none is configured"):
        Topology([]).route("m", {})


def test_a_lost_node_is_unroutable_but_its_models_are_not_forgotten(topology: Topology):
    topology.lost("b", "silent for 6 s")
    with pytest.raises(NodeUnavailable, match=r"only-b.*b \(silent for 6 s\)"):
        topology.route("only-b", {})
    assert not topology.models()["only-b"][0].reachable


def test_a_node_that_comes_back_serves_again(topology: Topology):
    topology.lost("b", "silent")
    topology.observed("b", _state("b", ("only-b", "ready"), version=1, boot="b2"))
    assert topology.route("only-b", {}).node == "b"


def test_an_older_version_of_the_same_boot_is_ignored(topology: Topology):
    topology.observed("a", _state("a", ("m", "failed"), version=5))
    assert not topology.observed("a", _state("a", ("m", "ready"), version=4))
    assert topology.route("m", {}).node == "b"


def test_a_new_boot_may_start_counting_again(topology: Topology):
    topology.observed("a", _state("a", version=50))
    assert topology.observed("a", _state("a", ("m", "ready"), version=1, boot="b2"))


@pytest.mark.parametrize("phase", ["loading", "recovering"])
def test_a_model_on_its_way_says_try_again(phase: ModelPhase):
    topology = Topology(["a"])
    topology.observed("a", _state("a", ("m", phase)))
    with pytest.raises(ModelLoading, match=f"{phase} on a") as caught:
        topology.route("m", {})
    assert caught.value.retry_after_s


def test_a_failed_model_tells_its_cause():
    topology = Topology(["a"])
    fault = Fault("upstream_failed", "killed by SIGSEGV")
    topology.observed("a", _state("a", ("m", "failed"), fault=fault))
    with pytest.raises(NoCapacity, match="SIGSEGV"):
        topology.route("m", {})


def test_a_draining_model_is_refused_with_its_phase():
    topology = Topology(["a"])
    topology.observed("a", _state("a", ("m", "draining")))
    with pytest.raises(NoCapacity, match=r"a \(draining\)"):
        topology.route("m", {})

"""What every node last said, and whether it can be reached."""

from __future__ import annotations

import pytest

from cortex_core.fleet.discovery import ModelState, NodeState
from cortex_core.fleet.topology import Location, Topology


def _model(name: str) -> ModelState:
    return ModelState(id=name, device="cpu", phase="ready", path="/m.gguf")


def _state(name: str, *models: str, version: int = 1, boot: str = "b1") -> NodeState:
    return NodeState(name, boot, version, False, [], [_model(model) for model in models])


@pytest.fixture
def topology() -> Topology:
    topology = Topology(["b", "a"])
    topology.observed("a", _state("a", "m"))
    topology.observed("b", _state("b", "m", "only-b"))
    return topology


def test_a_node_that_has_not_spoken_is_not_reachable():
    topology = Topology(["a"])
    assert not topology.is_reachable("a")
    assert topology.cause("a") == "not contacted yet"
    assert topology.state("a") is None


def test_every_model_is_known_with_all_its_places(topology: Topology):
    assert list(topology.models()) == ["m", "only-b"]
    assert topology.models()["m"] == [
        Location("b", True, _model("m")),
        Location("a", True, _model("m")),
    ]


def test_a_lost_node_is_unreachable_but_its_models_are_not_forgotten(topology: Topology):
    topology.lost("b", "silent for 6 s")
    assert not topology.is_reachable("b")
    assert topology.cause("b") == "silent for 6 s"
    assert topology.models()["only-b"] == [Location("b", False, _model("only-b"))]


def test_a_node_that_comes_back_is_reachable_again(topology: Topology):
    topology.lost("b", "silent")
    topology.observed("b", _state("b", boot="b2"))
    assert topology.is_reachable("b")
    assert topology.cause("b") == ""


def test_an_older_version_of_the_same_boot_is_ignored(topology: Topology):
    assert topology.observed("a", _state("a", version=5))
    assert not topology.observed("a", _state("a", "m", version=4))
    assert "m" not in {model.id for model in _models(topology, "a")}


def test_a_new_boot_may_start_counting_again(topology: Topology):
    topology.observed("a", _state("a", version=50))
    assert topology.observed("a", _state("a", "m", version=1, boot="b2"))
    assert _models(topology, "a") == [_model("m")]


def test_another_configuration_keeps_what_is_known_of_the_nodes_that_stay(topology: Topology):
    topology.configured(["a", "c"])
    assert topology.names == ["a", "c"]
    assert topology.is_reachable("a")
    assert topology.cause("c") == "not contacted yet"
    assert list(topology.models()) == ["m"]


def _models(topology: Topology, node: str) -> list[ModelState]:
    state = topology.state(node)
    assert state is not None
    return state.models

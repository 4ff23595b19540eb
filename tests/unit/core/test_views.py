"""What placement is told of a node."""

from __future__ import annotations

from cortex_core.fleet.discovery import (
    DeviceState,
    ModelState,
    NodeState,
    WorkerPhase,
    WorkerState,
)
from cortex_core.fleet.events import NodeObserved
from cortex_core.fleet.placement import NoPlacement, Placement
from tests.unit.core.fleet_playbook import GB, Stage, model


def _cpu(name: str, free_gb: float, phase: WorkerPhase = "ready") -> DeviceState:
    worker = WorkerState(phase, cause="killed by SIGSEGV" if phase == "failed" else None)
    free = int(free_gb * GB)
    return DeviceState(name, "cpu", "", worker, memory_total_bytes=10 * GB, memory_free_bytes=free)


def _decide(*devices: DeviceState, held: list[ModelState]) -> Placement | NoPlacement:
    """For `m`, which takes 4 GB on `cpu:0` and would never fit elsewhere."""
    stage = Stage(models=("m", "old"))
    stage.play(NodeObserved("a", NodeState("a", "b1", 1, False, list(devices), held)))
    needs = {device.id: 4 * GB if device.id == "cpu:0" else 99 * GB for device in devices}
    stage.conductor.ledger.estimated("m", "a", needs)
    return stage.conductor.explain("m", stage.now).decision


def test_cpu_devices_share_the_hosts_memory():
    held = [model("old", gb=6, device="cpu:1")]
    decision = _decide(_cpu("cpu:0", 3), _cpu("cpu:1", 3), held=held)
    assert isinstance(decision, Placement)
    assert (decision.device, decision.evict) == ("cpu:0", ("old",))


def test_cpu_devices_that_pretend_to_have_memory_have_their_own():
    held = [model("busy", gb=8, device="cpu:0", running=1), model("old", gb=6, device="cpu:1")]
    decision = _decide(_cpu("cpu:0", 2), _cpu("cpu:1", 4), held=held)
    assert isinstance(decision, NoPlacement)
    assert decision.after_drain is not None
    assert decision.after_drain.evict == ("busy",)


def test_a_device_whose_worker_was_given_up_takes_nothing():
    decision = _decide(_cpu("cpu:0", 10, "failed"), held=[])
    assert isinstance(decision, NoPlacement)
    assert "killed by SIGSEGV" in decision.causes["a"]


def test_a_node_that_another_gateway_is_filling_is_waited_for():
    stage = Stage(models=("m", "x"))
    stage.observe("a", model("x", "loading"))
    stage.conductor.ledger.estimated("m", "a", {"cuda:0": 4 * GB})
    decision = stage.conductor.explain("m", stage.now).decision
    assert isinstance(decision, NoPlacement)
    assert decision.is_worth_waiting
    assert stage.ask("r1", "m") == []


def test_an_unreachable_node_is_named_with_its_cause():
    stage = Stage()
    stage.lose("a")
    decision = stage.conductor.explain("m", stage.now).decision
    assert isinstance(decision, NoPlacement)
    assert "silent for 6 s" in decision.causes["a"]

"""What must hold in a gateway's record, from its first stimulus to its last.

The record is played again to a conductor of our own, which must say the same: so what is checked is
what was decided upon, with all that was known then.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.conductor import Conductor
from cortex_core.fleet.discovery import NodeState
from cortex_core.fleet.events import (
    DrainWanted,
    Instruction,
    Load,
    NodeObserved,
    OrderEnded,
    PinWanted,
    ReadState,
    Refuse,
    RequestCame,
    RequestEnded,
    RequestFailed,
    Restart,
    Send,
    Unload,
)
from tests.fleet.real.recorded_gateway import Configured, Handled, Line

__all__ = ["Witness"]

# What counts as having tried a request; anything else has turned it away.
FAILED = ("upstream_failed", "node_unavailable", "stalled", "internal_error")

# What the first load of a process takes beside its model, which no estimate knows of.
RUNTIME_BYTES = 4 * 2**20
# A load is let by its estimate, which may be a tenth short of what is measured after it. What is
# measured is the growth of a process that answers other models' requests meanwhile.
ESTIMATED_SHARE = 0.9


class Witness:
    """`flying`: request → (model, node). `waiting`: requests that have not been answered. `loads`
    and `evictions`, as (model, node), in their order."""

    def __init__(self, record: Sequence[Line]) -> None:
        first, *rest = record
        assert isinstance(first, Configured)
        self.flying: dict[str, tuple[str, str]] = {}
        self.waiting: set[str] = set()
        self.loads: list[tuple[str, str]] = []
        self.evictions: list[tuple[str, str]] = []
        self._failed: dict[str, int] = {}
        self._orders: dict[str, Load | Unload | ReadState | Restart] = {}
        self._boots: dict[str, str] = {}
        self._former: set[str] = set()  # in flight since a node's former life
        self._pins: set[str] = set()
        self._drained: set[str] = set()
        self._catalogue = Catalogue(first.entries, first.aliases)
        self.conductor = Conductor(self._catalogue, first.policy, first.nodes)
        for line in rest:
            self._take(line)

    def _take(self, line: Line) -> None:
        if isinstance(line, Configured):
            self._catalogue = Catalogue(line.entries, line.aliases)
            again = self.conductor.configured(self._catalogue, line.policy, line.nodes, line.at)
            for node in set(self._boots) - set(line.nodes):
                self._begin_anew(node)
        else:
            self._hear(line)
            again = self.conductor.handle(line.stimulus, line.at)
        assert again == line.out, f"said {line.out}, and played again {again}"
        for instruction in line.out:
            self._obey(instruction)

    def _hear(self, line: Handled) -> None:
        match line.stimulus:
            case RequestCame(interest):
                assert interest.request not in self.waiting
                assert interest.request not in self.flying
                self.waiting.add(interest.request)
                self._failed[interest.request] = 0
            case RequestFailed(request, fault):
                if self.flying.pop(request, None) is not None:
                    self.waiting.add(request)
                    self._failed[request] += fault.code in FAILED
            case RequestEnded(request):
                self.flying.pop(request, None)
                self.waiting.discard(request)
            case OrderEnded(order):
                self._orders = {n: one for n, one in self._orders.items() if one.order != order}
            case NodeObserved(node, state):
                if self._boots.get(node) != state.boot:
                    self._begin_anew(node)
                    self._boots[node] = state.boot
                _check_memory(state)
            case DrainWanted(node, is_draining):
                (self._drained.add if is_draining else self._drained.discard)(node)
            case PinWanted(model, is_pinned):
                (self._pins.add if is_pinned else self._pins.discard)(model)
            case _:
                pass

    def _begin_anew(self, node: str) -> None:
        """What was sent there before is not this life's: the node itself, where it lives on, sees
        to it that nothing is unloaded under them."""
        self._boots.pop(node, None)
        self._orders.pop(node, None)
        self._former |= {r for r, (_, where) in self.flying.items() if where == node}

    def _obey(self, instruction: Instruction) -> None:
        match instruction:
            case Send(request, replica):
                if request in self.waiting:  # an operator's is not among them
                    self.waiting.remove(request)
                    self.flying[request] = (replica.model, replica.node)
                    self._former.discard(request)
                    assert self._failed[request] <= 1, f"{request} was tried a third time"
                    assert replica.node not in self._drained, f"{instruction} to a drained node"
            case Refuse(request):
                self.waiting.discard(request)
            case Load() | Unload() | ReadState() | Restart():
                self._begin(instruction)
            case _:
                pass

    def _begin(self, order: Load | Unload | ReadState | Restart) -> None:
        assert order.node not in self._orders, f"{order} besides {self._orders[order.node]}"
        self._orders[order.node] = order
        topology = self.conductor.topology
        assert topology.is_reachable(order.node), f"{order} to a node out of reach"
        state = topology.state(order.node)
        assert state is not None
        if isinstance(order, Load):
            self.loads.append((order.model, order.node))
            self._check_load(order, state)
        elif isinstance(order, Unload) and order.reason != "operator":
            self.evictions.append((order.model, order.node))
            self._check_eviction(order, state)

    def _check_load(self, order: Load, state: NodeState) -> None:
        assert order.node not in self._drained, f"{order} on a drained node"
        held = [m for m in state.models if m.id == order.model and m.phase != "failed"]
        assert not held, f"{order} of what is there"
        assert order.device is not None
        need = self.conductor.ledger.need(order.model, order.node, order.device)
        (free,) = (d.memory_free_bytes for d in state.devices if d.id == order.device)
        assert need is not None
        assert free is not None
        assert need.memory_bytes <= free, f"{order} takes {need}, of {free} B"

    def _check_eviction(self, order: Unload, state: NodeState) -> None:
        what = (order.model, order.node)
        assert order.if_idle, f"{order} would not mind who uses it"
        assert order.model not in self._pins, f"{order} of what an operator pinned"
        entry = self._catalogue.entry(order.model)
        assert not entry.is_pinned_on(order.node), f"{order} of what is pinned"
        busy = [r for r, where in self.flying.items() if where == what and r not in self._former]
        assert not busy, f"{order} while {busy} were there"
        told = [m.running + m.waiting for m in state.models if m.id == order.model]
        assert not any(told), f"{order} while the node told of {told} requests"


def _check_memory(state: NodeState) -> None:
    for device in state.devices:
        held = {m.id: m.memory_bytes for m in state.models if m.device == device.id}
        total = device.memory_total_bytes
        assert total is not None
        most = total / ESTIMATED_SHARE + RUNTIME_BYTES
        assert sum(held.values()) <= most, f"{state.name} holds {held} B, and has {total} B"
    ids = [model.id for model in state.models]
    assert len(ids) == len(set(ids)), f"{state.name} holds {ids}"

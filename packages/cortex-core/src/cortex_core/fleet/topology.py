"""The gateway's view of the fleet, and where a request goes. Pure: events in, answers out.

Unknown is not routable: a node counts only while its event stream is alive. A lost stream makes a
node unroutable but does not make its models forgotten, so a client hears "unreachable", not "no
such model".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cortex_core.errors import (
    CortexError,
    ModelLoading,
    ModelNotFound,
    NoCapacity,
    NodeUnavailable,
)
from cortex_core.fleet.discovery import ModelState, NodeState

__all__ = ["Location", "Replica", "Topology"]


class Replica(msgspec.Struct, frozen=True):
    """A ready model on a reachable node."""

    model: str
    node: str
    device: str


class Location(msgspec.Struct, frozen=True):
    """Where a model is known to be, routable or not."""

    node: str
    reachable: bool
    model: ModelState


class _Node:
    __slots__ = ("cause", "reachable", "state")

    def __init__(self) -> None:
        self.state: NodeState | None = None
        self.reachable = False
        self.cause = "not contacted yet"


class Topology:
    """Every configured node with its last known state."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self._nodes = {name: _Node() for name in nodes}
        self._ready: dict[str, list[Replica]] = {}

    # stimuli

    def configured(self, nodes: Iterable[str]) -> None:
        """Other nodes may be configured now; what is known of those that stay is kept."""
        self._nodes = {name: self._nodes.get(name) or _Node() for name in nodes}
        self._index()

    def observed(self, node: str, state: NodeState) -> bool:
        """A state arrived. Returns False when it is older than what is known of the same boot."""
        entry = self._nodes[node]
        known = entry.state
        if known is not None and known.boot == state.boot and state.version < known.version:
            return False
        entry.state = state
        entry.reachable = True
        entry.cause = ""
        self._index()
        return True

    def lost(self, node: str, cause: str) -> None:
        """The event stream ended, or fell silent for longer than its promise."""
        entry = self._nodes[node]
        entry.reachable = False
        entry.cause = cause
        self._index()

    # questions

    @property
    def names(self) -> list[str]:
        return list(self._nodes)

    def is_reachable(self, node: str) -> bool:
        return self._nodes[node].reachable

    def state(self, node: str) -> NodeState | None:
        return self._nodes[node].state

    def cause(self, node: str) -> str:
        """Why a node is not reachable; empty when it is."""
        return self._nodes[node].cause

    def models(self) -> dict[str, list[Location]]:
        """Every known model and all its locations, ordered by model id, then by node."""
        found: dict[str, list[Location]] = {}
        for name, node in self._nodes.items():
            for model in node.state.models if node.state else ():
                found.setdefault(model.id, []).append(Location(name, node.reachable, model))
        return dict(sorted(found.items()))

    def route(
        self, model: str, in_flight: Mapping[str, int], avoid: frozenset[str] = frozenset()
    ) -> Replica:
        """The least loaded ready replica by `in_flight` (node → requests of ours), name on a tie.

        `avoid` holds nodes that have just failed this request. Raises the refusal of `refuse`.
        """
        replicas = self._ready.get(model, ())
        if avoid:
            replicas = [replica for replica in replicas if replica.node not in avoid]
        if len(replicas) == 1:
            return replicas[0]
        if not replicas:
            raise self.refuse(model)
        return min(replicas, key=lambda r: (in_flight.get(r.node, 0), r.node, r.device))

    def refuse(self, model: str) -> CortexError:
        """Why no replica of `model` can be used now, as the error its client should get."""
        if not any(node.reachable for node in self._nodes.values()):
            causes = "; ".join(f"{name}: {node.cause}" for name, node in self._nodes.items())
            return NodeUnavailable(f"no neuron is reachable ({causes or 'none is configured'})")
        locations = self.models().get(model, [])
        if not locations:
            known = ", ".join(self.models()) or "none"
            return ModelNotFound(
                f"no node has the model {model!r}; known models: {known}", param="model"
            )
        for location in locations:
            if location.reachable and location.model.phase in ("loading", "recovering"):
                done = location.model.progress
                state = location.model.phase + (f" ({done:.0%})" if done is not None else "")
                return ModelLoading(f"the model {model!r} is {state} on {location.node}")
        for location in locations:
            if location.reachable and location.model.phase == "failed":
                fault = location.model.fault
                why = fault.message if fault else "unknown cause"
                return NoCapacity(f"the model {model!r} has failed on {location.node}: {why}")
        if not any(location.reachable for location in locations):
            nodes = ", ".join(f"{x.node} ({self.cause(x.node)})" for x in locations)
            return NodeUnavailable(f"the model {model!r} is only on unreachable nodes: {nodes}")
        nodes = ", ".join(f"{x.node} ({x.model.phase})" for x in locations)
        return NoCapacity(f"the model {model!r} cannot be served now: {nodes}")

    def _index(self) -> None:
        ready: dict[str, list[Replica]] = {}
        for name, node in self._nodes.items():
            if node.reachable and node.state is not None and not node.state.draining:
                for model in node.state.models:
                    if model.phase == "ready":
                        replica = Replica(model.id, name, model.device)
                        ready.setdefault(model.id, []).append(replica)
        self._ready = ready

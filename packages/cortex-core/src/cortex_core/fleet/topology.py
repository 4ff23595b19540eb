"""What every node last said, and whether it can be reached.

A node counts only while its event stream is alive. A lost stream makes a node unreachable but does
not make its models forgotten, so a client hears "unreachable", not "no such model".
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

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

    # stimuli

    def configured(self, nodes: Iterable[str]) -> None:
        """Other nodes may be configured now; what is known of those that stay is kept."""
        self._nodes = {name: self._nodes.get(name) or _Node() for name in nodes}

    def observed(self, node: str, state: NodeState) -> bool:
        """A state arrived. Returns False when it is older than what is known of the same boot."""
        entry = self._nodes[node]
        known = entry.state
        if known is not None and known.boot == state.boot and state.version < known.version:
            return False
        entry.state = state
        entry.reachable = True
        entry.cause = ""
        return True

    def lost(self, node: str, cause: str) -> None:
        """The event stream ended, or fell silent for longer than its promise."""
        entry = self._nodes[node]
        entry.reachable = False
        entry.cause = cause

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

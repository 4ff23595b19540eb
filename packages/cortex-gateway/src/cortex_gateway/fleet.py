"""The gateway's fleet: the topology, and what this gateway has in flight on each node.

Holds state and answers questions; the decisions are `cortex_core.fleet.topology`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from cortex_core.errors import ModelNotFound, NodeUnavailable
from cortex_core.fleet.discovery import NodeState
from cortex_core.fleet.topology import Replica, Topology

__all__ = ["FIRST_CONTACT_S", "NOBODY", "Fleet"]

# A client that arrives while the gateway is starting waits this long, at most, for every node to
# have reported or failed once; without it the first requests after a restart would be refused.
FIRST_CONTACT_S = 2.0

NOBODY: frozenset[str] = frozenset()

_log = logging.getLogger("cortex.fleet")


class Fleet:
    """The nodes are fixed for the gateway's life; what they hold changes with every stimulus."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self.topology = Topology(nodes)
        self.in_flight = dict.fromkeys(self.topology.names, 0)
        self._unheard = set(self.topology.names)
        self._contacted = asyncio.Event()
        self._heard(None)

    # stimuli

    def observed(self, node: str, state: NodeState) -> None:
        was_reachable = self.topology.is_reachable(node)
        known = self.topology.state(node)
        if not self.topology.observed(node, state):
            _log.debug('"a late state" node=%s version=%d', node, state.version)
        elif not was_reachable:
            _log.info('"node up" node=%s boot=%s models=%d', node, state.boot, len(state.models))
        elif known is not None and known.boot != state.boot:
            _log.info('"node restarted" node=%s boot=%s', node, state.boot)
        self._heard(node)

    def lost(self, node: str, cause: str) -> None:
        if self.topology.is_reachable(node) or self.topology.cause(node) != cause:
            _log.warning('"node lost" node=%s cause="%s"', node, cause)
        self.topology.lost(node, cause)
        self._heard(node)

    # questions

    async def route(self, model: str, avoid: frozenset[str] = NOBODY) -> Replica:
        """Where a request for `model` goes. Raises the topology's refusal."""
        try:
            return self.topology.route(model, self.in_flight, avoid)
        except (ModelNotFound, NodeUnavailable):
            if self._contacted.is_set():
                raise
        await self.first_contact()
        return self.topology.route(model, self.in_flight, avoid)

    async def first_contact(self) -> None:
        """Return once every node has reported or failed, or FIRST_CONTACT_S after the first wait
        for it began."""
        try:
            await asyncio.wait_for(self._contacted.wait(), FIRST_CONTACT_S)
        except TimeoutError:
            self._contacted.set()

    def knows(self, model: str) -> bool:
        """Whether any node, reachable or not, is known to hold `model`."""
        return model in self.topology.models()

    def seat(self, node: str) -> _Seat:
        """A context manager: while inside, the request counts as in flight on `node`."""
        return _Seat(self.in_flight, node)

    def _heard(self, node: str | None) -> None:
        self._unheard.discard(node or "")
        if not self._unheard:
            self._contacted.set()


class _Seat:
    __slots__ = ("_counts", "_node")

    def __init__(self, counts: dict[str, int], node: str) -> None:
        self._counts = counts
        self._node = node

    def __enter__(self) -> None:
        self._counts[self._node] += 1

    def __exit__(self, *exc: object) -> None:
        self._counts[self._node] -= 1

"""The gateway's fleet: the topology, and what this gateway has in flight on each node.

Holds state and answers questions; the decisions are `cortex_core.fleet.topology`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import overload

from cortex_core.errors import CortexError, ModelNotFound, NodeUnavailable
from cortex_core.fleet.discovery import NodeState
from cortex_core.fleet.events import Interest
from cortex_core.fleet.topology import Replica, Topology
from cortex_gateway.metrics import FleetFacts, NodeFacts

__all__ = ["FIRST_CONTACT_S", "NOBODY", "Fleet", "Seat"]

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

    def known(self, name: str) -> str | None:
        """The id behind a name, of a model that any node, reachable or not, holds; else None."""
        return name if name in self.topology.models() else None

    def facts(self) -> FleetFacts:
        """What the metrics say of this moment."""
        topology = self.topology
        nodes: list[NodeFacts] = []
        for name in topology.names:
            state = topology.state(name)
            is_reachable = topology.is_reachable(name)
            devices = state.devices if state is not None and is_reachable else []
            nodes.append(NodeFacts(name, is_reachable, self.in_flight[name], devices))
        return FleetFacts(nodes, {}, list(topology.models()))

    @overload
    def seat(self, of: Interest) -> Seat: ...
    @overload
    def seat(self, of: str) -> _Seat: ...
    def seat(self, of: Interest | str) -> Seat | _Seat:
        """Where a request is served, as an async context manager: entering waits for a replica.

        Of a node's name: a context manager inside which a request counts as in flight there."""
        return Seat(self, of) if isinstance(of, Interest) else _Seat(self.in_flight, of)

    def _heard(self, node: str | None) -> None:
        self._unheard.discard(node or "")
        if not self._unheard:
            self._contacted.set()


class Seat:
    """A request's place in the fleet, from its wish for a model to its end.

    Entering returns at once where a replica is ready, waits for one where that is to come, and
    raises the CortexError of a refusal. `attempts`: how many replicas it has been sent to;
    `queued_s`: how long it has waited in all; `load_s`: the part of that during which its model
    was loading, None where it never was.
    """

    __slots__ = ("_fleet", "_interest", "attempts", "load_s", "queued_s", "replica")

    replica: Replica

    def __init__(self, fleet: Fleet, interest: Interest) -> None:
        self._fleet = fleet
        self._interest = interest
        self.attempts = 0
        self.queued_s = 0.0
        self.load_s: float | None = None

    async def __aenter__(self) -> Seat:
        await self._send(NOBODY)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.attempts:
            self._fleet.in_flight[self.replica.node] -= 1

    async def failed(self, error: CortexError) -> Replica:
        """The replica failed with `error` before the first byte of an answer: the next one to ask,
        which is `self.replica` from then on. Raises the refusal when there is none."""
        if self.attempts > 1:
            raise error
        former = self.replica
        try:
            await self._send(frozenset({former.node}))
        except CortexError:
            raise error from None
        self._fleet.in_flight[former.node] -= 1
        return self.replica

    async def _send(self, avoid: frozenset[str]) -> None:
        self.replica = await self._fleet.route(self._interest.model, avoid)
        self._fleet.in_flight[self.replica.node] += 1
        self.attempts += 1


class _Seat:
    __slots__ = ("_counts", "_node")

    def __init__(self, counts: dict[str, int], node: str) -> None:
        self._counts = counts
        self._node = node

    def __enter__(self) -> None:
        self._counts[self._node] += 1

    def __exit__(self, *exc: object) -> None:
        self._counts[self._node] -= 1

"""What the conductor knows: the one state that its parts share, and the few moves that keep it
consistent. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from cortex_core.config.gateway import EvictionSection, GatewayConfig
from cortex_core.errors import CortexError, Fault
from cortex_core.fleet.affinity import Affinity
from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.discovery import NodeState
from cortex_core.fleet.events import Instruction, Refuse, WakeAt
from cortex_core.fleet.ledger import Ledger
from cortex_core.fleet.lifecycle import Place
from cortex_core.fleet.story import Story
from cortex_core.fleet.topology import Replica, Topology
from cortex_core.fleet.waiting import Ticket, WaitingRoom

if TYPE_CHECKING:
    from cortex_core.fleet.plans import Plan

__all__ = ["Board", "Node", "Policy"]

REQUESTS_REMEMBERED = 1000
PLACES_REMEMBERED = 10_000
LINES_REMEMBERED = 50

_NEVER = float("inf")


class Policy(msgspec.Struct, frozen=True):
    """The operator's limits: how many may wait for one model, and for how many seconds."""

    max_waiting: int = 256
    max_wait_s: float = 600.0
    eviction: EvictionSection = EvictionSection()

    @classmethod
    def of(cls, config: GatewayConfig) -> Policy:
        return cls(config.gateway.max_waiting, config.gateway.max_wait_s, config.eviction)


class Node:
    """What the gateway adds to a node's own word.

    plan: what is being changed there; one at a time. is_stale: an order of ours has ended there
    since its memory was read. rests_until: nothing is tried there before then. asked: model → when
    it was asked for an estimate that has not come. answered: model → when one came. cycles: device
    → loads and unloads of ours since its worker was restarted.
    """

    __slots__ = (
        "answered",
        "asked",
        "cycles",
        "is_drained",
        "is_stale",
        "name",
        "places",
        "plan",
        "rests_until",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_drained = False
        self.plan: Plan | None = None
        self.is_stale = False
        self.rests_until = 0.0
        self.asked: dict[str, float] = {}
        self.answered: dict[str, float] = {}
        self.cycles: dict[str, int] = {}
        self.places: dict[str, Place] = {}


class Board:
    """`out` takes the instructions of the stimulus at hand, whose time is `now`.

    tickets: all requests that have come and not ended. places: model → node → what is known.
    ready: model → its replicas that take requests. tripped: model → its ready places whose breaker
    is open. unsettled: models whose waiting requests are to be looked at again. pins: what an
    operator has pinned. failed_loads: model → loads that failed in a row, for those who wait now.
    """

    def __init__(
        self, catalogue: Catalogue, policy: Policy, nodes: Iterable[str], ledger: Ledger
    ) -> None:
        self.catalogue = catalogue
        self.policy = policy
        self.ledger = ledger
        self.topology = Topology(nodes)
        self.affinity = Affinity()
        self.nodes = {name: Node(name) for name in self.topology.names}
        self.places: dict[str, dict[str, Place]] = {}
        self.ready: dict[str, list[Replica]] = {}
        self.tripped: dict[str, list[Place]] = {}
        self.tickets: dict[str, Ticket] = {}
        self.waiting = WaitingRoom()
        self.pins: set[str] = set()
        self.failed_loads: dict[str, int] = {}
        self.unsettled: set[str] = set()
        self.requests: Story[str] = Story(REQUESTS_REMEMBERED, LINES_REMEMBERED)
        self.history: Story[tuple[str, str]] = Story(PLACES_REMEMBERED, LINES_REMEMBERED)
        self.now = 0.0
        self.out: list[Instruction] = []
        self._orders = 0
        self._alarm = _NEVER

    # facts

    def state(self, node: str) -> NodeState:
        """The last word of a node that has spoken."""
        state = self.topology.state(node)
        assert state is not None
        return state

    def is_usable(self, node: str) -> bool:
        """Whether it may be given anything new: requests, or models."""
        return self.topology.is_reachable(node) and not self.is_draining(node)

    def is_draining(self, node: str) -> bool:
        state = self.topology.state(node)
        return self.nodes[node].is_drained or (state is not None and state.draining)

    def is_known(self, model: str) -> bool:
        """Whether the operator listed it or a node has had it. Nodes are not asked about any other
        name that a client comes up with."""
        return model in self.catalogue or model in self.places

    def is_pinned(self, model: str, node: str) -> bool:
        return model in self.pins or self.catalogue.entry(model).is_pinned_on(node)

    def is_coming(self, model: str, node: str | None = None) -> bool:
        """Whether it is on its way to being ready, or a load of it is being made room for: on this
        node, or anywhere."""
        return any(node in (None, name) for name in self.coming(model))

    def coming(self, model: str) -> list[str]:
        """The nodes where it is on its way."""
        places = self.places.get(model, {})
        return [
            name
            for name, node in self.nodes.items()
            if (name in places and places[name].is_coming and self.topology.is_reachable(name))
            or (node.plan is not None and node.plan.kind == "load" and node.plan.model == model)
        ]

    # moves

    def place(self, model: str, node: str) -> Place:
        places = self.places.setdefault(model, {})
        if node not in places:
            tell = partial(self._tell, (model, node))
            places[node] = self.nodes[node].places[model] = Place(model, node, tell)
        return places[node]

    def moved(self, place: Place) -> None:
        """Its state has changed."""
        if not place.has_memory:
            self.affinity.forget(place.node, place.model)
        self.index(place.model)

    def index(self, model: str) -> None:
        """Which of its places take requests may have changed."""
        ready = [
            place
            for place in self.places.get(model, {}).values()
            if place.is_ready and self.is_usable(place.node)
        ]
        closed = [place.replica for place in ready if place.breaker.is_closed]
        tripped = [place for place in ready if not place.breaker.is_closed]
        _put(self.ready, model, closed)
        _put(self.tripped, model, tripped)
        self.unsettled.add(model)

    def index_node(self, node: str) -> None:
        for model in self.nodes[node].places:
            self.index(model)

    def stir(self) -> None:
        """Room may have come up somewhere: look at everybody who waits."""
        self.unsettled.update(self.waiting.models)

    def stir_blocked(self) -> None:
        """Somebody may make room now: look at those for whom nothing is on its way."""
        self.unsettled.update(m for m in self.waiting.models if not self.is_coming(m))

    def order(self) -> int:
        self._orders += 1
        return self._orders

    def wake(self, at: float) -> None:
        if at < self._alarm:
            self._alarm = at
            self.out.append(WakeAt(at))

    def woken(self) -> None:
        """A Tick has come; whoever still needs one has to say so again."""
        self._alarm = _NEVER

    def note(self, ticket: Ticket, text: str, *values: object) -> None:
        self.requests.note(ticket.request, self.now, text, *values)

    def refuse(self, ticket: Ticket, why: CortexError | Fault) -> None:
        fault = why.fault if isinstance(why, CortexError) else why
        self.waiting.leave(ticket)
        self.tickets.pop(ticket.request, None)
        self.note(ticket, "refused: {}", fault.message)
        self.out.append(Refuse(ticket.request, fault))

    def _tell(self, subject: tuple[str, str], text: str, *values: object) -> None:
        self.history.note(subject, self.now, text, *values)


def _put(index: dict[str, list], model: str, found: list) -> None:
    if found:
        index[model] = found
    else:
        index.pop(model, None)

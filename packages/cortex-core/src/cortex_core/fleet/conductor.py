"""The conductor: all policy of the fleet, as one state machine.

A stimulus comes in with its moment, instructions come out. It has no clock, does no I/O and waits
for nothing; whoever owns it carries out what it says and tells it what came of that. After each
stimulus everybody who waits and may be concerned is looked at, in the order in which the models
were first waited for; then what is done without anybody's waiting.

The parts: `routing` (requests), `placing` (those who wait), `plans` (what is being changed on each
node), `upkeep` (what nobody waits for), `board` (what they all know).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cortex_core.errors import Fault
from cortex_core.fleet.board import Board, Node, Policy
from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.events import (
    AnswerBegan,
    DrainWanted,
    EstimateCame,
    Instruction,
    LoadWanted,
    NodeLost,
    NodeObserved,
    OrderEnded,
    PinWanted,
    RequestCame,
    RequestEnded,
    RequestFailed,
    Stimulus,
    Tick,
    UnloadWanted,
)
from cortex_core.fleet.ledger import Ledger
from cortex_core.fleet.placement import NoPlacement, Placement
from cortex_core.fleet.routing import LOOK_S, Routing
from cortex_core.fleet.story import StoryLine
from cortex_core.fleet.topology import Replica, Topology
from cortex_core.fleet.upkeep import Upkeep
from cortex_core.fleet.views import decide

__all__ = ["Conductor", "Explanation", "LoadUnderWay", "Policy"]


# After these there is time for what nobody needs at once.
_IDLE = frozenset({EstimateCame, Tick})


class Explanation(msgspec.Struct, frozen=True):
    """Where requests for a model go. `replicas` are those that take requests now; `decision` is
    where placement would load it (again)."""

    model: str
    replicas: list[Replica]
    decision: Placement | NoPlacement


class LoadUnderWay(msgspec.Struct, frozen=True):
    """`step`: what is being done for it at the moment; `victim`: whom that concerns."""

    model: str
    node: str
    device: str
    step: str
    victim: str | None


class Conductor:
    """nodes: the configured neurons' names. Of each node the first word is awaited, however long
    that takes: until then it is unreachable."""

    def __init__(
        self,
        catalogue: Catalogue,
        policy: Policy,
        nodes: Iterable[str],
        ledger: Ledger | None = None,
    ) -> None:
        self.ledger = ledger if ledger is not None else Ledger()
        self.ledger.configured(catalogue.entry(model) for model in catalogue.ids)
        self._board = Board(catalogue, policy, nodes, self.ledger)
        self._routing = Routing(self._board)
        self._upkeep = Upkeep(self._board)
        self._placing = self._upkeep.placing
        self._plans = self._upkeep.plans
        # What only a change of the fleet or time can bring about is not looked for at every
        # request.
        self._requests: dict[type, Callable[[Any], None]] = {
            RequestCame: self._routing.came,
            AnswerBegan: self._routing.began,
            RequestEnded: self._routing.ended,
            RequestFailed: self._routing.failed,
        }
        self._others: dict[type, Callable[[Any], None]] = {
            LoadWanted: self._routing.load_wanted,
            UnloadWanted: self._upkeep.unload_wanted,
            EstimateCame: self._placing.estimated,
            OrderEnded: self._plans.ended,
            NodeObserved: self._observed,
            NodeLost: self._lost,
            DrainWanted: self._drain,
            PinWanted: self._pin,
            Tick: self._tick,
        }

    def handle(self, stimulus: Stimulus, now: float) -> list[Instruction]:
        """What is to be done now, in this order. now: monotonic seconds, never less than before."""
        board = self._board
        board.now = now
        out = board.out = []
        on_request = self._requests.get(type(stimulus))
        if on_request is not None:
            on_request(stimulus)
            if board.unsettled:
                self._settle()
            return out
        self._others[type(stimulus)](stimulus)
        self._settle()
        self._upkeep.run()
        self._settle()
        if type(stimulus) in _IDLE:
            self._placing.survey()
        return out

    def configured(
        self, catalogue: Catalogue, policy: Policy, nodes: Iterable[str], now: float
    ) -> list[Instruction]:
        """Another configuration: only what differs moves. Requests on nodes that are no longer
        there go on; nobody sends them anything new."""
        board = self._board
        board.now = now
        out = board.out = []
        board.catalogue, board.policy = catalogue, policy
        self.ledger.configured(catalogue.entry(model) for model in catalogue.ids)
        wanted = list(nodes)
        for name in set(board.nodes) - set(wanted):
            self._remove(name)
        board.topology.configured(wanted)
        board.nodes = {name: board.nodes.get(name) or Node(name) for name in wanted}
        for node in board.nodes.values():
            node.answered.clear()
        for model in list(board.places):
            board.index(model)
        board.stir()
        self._settle()
        self._upkeep.run()
        self._settle()
        return out

    # questions

    @property
    def topology(self) -> Topology:
        """Every configured node with its last known state. To be read only."""
        return self._board.topology

    @property
    def catalogue(self) -> Catalogue:
        return self._board.catalogue

    @property
    def pins(self) -> frozenset[str]:
        """What an operator has pinned; not what the catalogue pins."""
        return frozenset(self._board.pins)

    @property
    def drained(self) -> frozenset[str]:
        """The nodes that an operator has drained here."""
        return frozenset(name for name, node in self._board.nodes.items() if node.is_drained)

    @property
    def waiting(self) -> dict[str, int]:
        """Model → requests that wait for it."""
        return self._board.waiting.counts

    @property
    def loads(self) -> list[LoadUnderWay]:
        """What is being loaded, or being made room for, by this gateway."""
        plans = [node.plan for node in self._board.nodes.values() if node.plan is not None]
        return [
            LoadUnderWay(
                plan.model,
                plan.node,
                plan.device,
                plan.step,
                plan.victim if plan.step == "unload" else None,
            )
            for plan in plans
            if plan.kind == "load"
        ]

    def in_flight(self, node: str) -> int:
        """Requests of this gateway on a node."""
        return sum(place.busy for place in self._board.nodes[node].places.values())

    def explain(self, name: str, now: float) -> Explanation:
        """Where it is and where it would be loaded. Nothing is done, and no node is asked."""
        board = self._board
        board.now = now
        model = board.catalogue.resolve(name)
        return Explanation(model, list(board.ready.get(model, ())), decide(board, model))

    def feasible_on(self, name: str, now: float) -> list[str]:
        """The reachable nodes that have the model, or have said that it would fit there if they
        were empty."""
        board = self._board
        board.now = now
        model = board.catalogue.resolve(name)
        found = []
        for node in board.nodes.values():
            if not board.topology.is_reachable(node.name):
                continue
            place = node.places.get(model)
            if place is None or not place.has_memory:
                devices = [device.id for device in board.state(node.name).devices]
                if not board.ledger.needs(model, node.name, devices):
                    continue
                decision = decide(board, model, only=(node.name,))
                if isinstance(decision, NoPlacement) and decision.is_forever:
                    continue
            found.append(node.name)
        return found

    def story(self, request: str) -> list[StoryLine]:
        """What has happened to one of the last requests."""
        return self._board.requests.read(request)

    def history(self, model: str, node: str) -> list[StoryLine]:
        """What has happened to a model on a node."""
        return self._board.history.read((model, node))

    # stimuli

    def _observed(self, stimulus: NodeObserved) -> None:
        board = self._board
        node = board.nodes.get(stimulus.node)
        if node is None:
            return
        before = board.topology.state(node.name)
        was_usable = board.is_usable(node.name)
        if not board.topology.observed(node.name, stimulus.state):
            return
        if before is not None and before.boot != stimulus.state.boot:
            self._restarted(node)
        if before is None or before.boot != stimulus.state.boot:
            board.wake(board.now + LOOK_S)  # to ask it what it could load
        self.ledger.observed(node.name, stimulus.state)
        said = {model.id: model for model in stimulus.state.models}
        for model in {**node.places, **said}:
            place = board.place(model, node.name)
            if place.heard(said.get(model), board.now):
                board.moved(place)
        if was_usable != board.is_usable(node.name):
            board.index_node(node.name)
        board.stir()

    def _restarted(self, node: Node) -> None:
        """Another process has the name now: nothing of the former one's is left."""
        board = self._board
        self._plans.node_restarted(node.name)
        node.is_stale = False
        node.rests_until = board.now
        node.asked.clear()
        node.answered.clear()
        node.cycles.clear()
        board.affinity.forget(node.name)
        for place in node.places.values():
            if place.heard(None, board.now):
                board.moved(place)

    def _lost(self, stimulus: NodeLost) -> None:
        board = self._board
        if stimulus.node not in board.nodes:
            return
        board.topology.lost(stimulus.node, stimulus.cause)
        board.index_node(stimulus.node)
        board.stir()

    def _drain(self, stimulus: DrainWanted) -> None:
        board = self._board
        node = board.nodes.get(stimulus.node)
        if node is not None:
            node.is_drained = stimulus.is_draining
            board.index_node(node.name)
            board.stir()

    def _pin(self, stimulus: PinWanted) -> None:
        board = self._board
        model = board.catalogue.resolve(stimulus.model)
        (board.pins.add if stimulus.is_pinned else board.pins.discard)(model)
        board.stir()

    def _tick(self, stimulus: Tick) -> None:
        self._board.woken()
        self._board.stir()

    def _remove(self, name: str) -> None:
        board = self._board
        fault = Fault("node_unavailable", f"the node {name} is not configured any more")
        plan = board.nodes[name].plan
        if plan is not None:
            self._plans.ended(OrderEnded(plan.order, fault))
        for model in board.nodes[name].places:
            del board.places[model][name]
            board.index(model)
            if not board.places[model]:
                del board.places[model]
        board.affinity.forget(name)
        self.ledger.forget(name)

    # those who wait

    def _settle(self) -> None:
        """Until nothing that has happened concerns anybody who waits any more. Each round sends or
        refuses somebody, or begins something on a node that had nothing to do, so it ends."""
        board = self._board
        while board.unsettled:
            models = [model for model in board.waiting.models if model in board.unsettled]
            models += sorted(board.unsettled.difference(models))
            board.unsettled.clear()
            for model in models:
                self._routing.serve(model)
                self._placing.advance(model)
        if board.waiting.models:
            board.wake(board.now + LOOK_S)

"""What is done though no request waits for it: an operator's unloads, models that are to be kept on
a node or on several, those whose time is up, and workers that have been loaded too often.

All of it gives way to requests, and none of it evicts anything.
"""

from __future__ import annotations

from cortex_core.errors import Fault, ModelNotFound, NodeUnavailable
from cortex_core.fleet.board import Board, Node
from cortex_core.fleet.events import Done, Refuse, UnloadWanted
from cortex_core.fleet.placement import Placement
from cortex_core.fleet.placing import Placing
from cortex_core.fleet.plans import Plans
from cortex_core.fleet.views import decide

__all__ = ["Upkeep"]

# All replicas of a model have more to do than they do at once, for so long: one more is wanted.
CROWDED_S = 5.0

LOOK_S = 1.0


class _Unloading:
    """An operator's wish. `fault`: how the first of its nodes failed it."""

    def __init__(self, model: str, nodes: set[str]) -> None:
        self.model = model
        self.nodes = nodes
        self.fault: Fault | None = None


class Upkeep:
    def __init__(self, board: Board) -> None:
        self._board = board
        self._wishes: dict[str, _Unloading] = {}
        self._crowded: dict[str, float] = {}  # model → since when
        self.plans = Plans(board, self._unloaded)
        self.placing = Placing(board, self.plans)

    def run(self) -> None:
        """Whatever is due now and can be done."""
        for request in list(self._wishes):
            self._carry_on(request)
        for node in self._board.nodes.values():
            if self._is_free(node):
                self._tend(node)
        for model in list(self._board.ready):
            self._replicate(model)

    # an operator's unloads

    def unload_wanted(self, stimulus: UnloadWanted) -> None:
        board = self._board
        model = board.catalogue.resolve(stimulus.model)
        holders = {
            name
            for name, place in board.places.get(model, {}).items()
            if stimulus.node in (None, name) and (place.said is not None or place.order == "load")
        }
        if not holders:
            where = f"the node {stimulus.node}" if stimulus.node is not None else "any node"
            error = ModelNotFound(f"the model {model!r} is not on {where}", param="model")
            self._answer(stimulus.request, error.fault)
            return
        self._wishes[stimulus.request] = _Unloading(model, holders)
        self._carry_on(stimulus.request)

    def _carry_on(self, request: str) -> None:
        board, wish = self._board, self._wishes[request]
        for name in sorted(wish.nodes):
            node = board.nodes.get(name)
            place = node.places.get(wish.model) if node is not None else None
            if node is not None and node.plan is not None and node.plan.asker == request:
                continue  # whatever becomes of the node, its plan will say how it ended
            if node is None or not board.topology.is_reachable(name):
                cause = board.topology.cause(name) if node is not None else "not configured"
                fault = NodeUnavailable(f"the node {name} cannot be reached: {cause}").fault
                self._unloaded(request, name, fault)
            elif place is None or (place.said is None and place.order is None):
                self._unloaded(request, name, None)
            elif self._is_free(node):
                self.plans.unload(wish.model, name, "operator", request)
        if request in self._wishes:
            board.wake(board.now + LOOK_S)

    def _unloaded(self, request: str, node: str, fault: Fault | None) -> None:
        wish = self._wishes[request]
        wish.nodes.discard(node)
        wish.fault = wish.fault or fault
        if not wish.nodes:
            del self._wishes[request]
            self._answer(request, wish.fault)

    def _answer(self, request: str, fault: Fault | None) -> None:
        board = self._board
        said = fault.message if fault is not None else "unloaded"
        board.requests.note(request, board.now, "{}", said)
        board.out.append(Done(request) if fault is None else Refuse(request, fault))

    # nodes

    def _is_free(self, node: Node) -> bool:
        """Whether something may be begun there."""
        board = self._board
        if node.plan is not None or not board.topology.is_reachable(node.name):
            return False
        if board.now < node.rests_until:
            board.wake(node.rests_until)
            return False
        return True

    def _tend(self, node: Node) -> None:
        """At most one thing is begun."""
        board = self._board
        for place in node.places.values():
            if place.is_ready and self._has_had_its_time(node, place.model):
                self.plans.unload(place.model, node.name, "ttl")
                return
        if board.is_draining(node.name):
            return
        for model in board.catalogue.ids:
            if node.name in board.catalogue.entry(model).pinned_on and self._keep(node, model):
                return
        self._defragment(node)

    def _has_had_its_time(self, node: Node, model: str) -> bool:
        board = self._board
        place = node.places[model]
        ttl_s = board.catalogue.entry(model).ttl_s
        if ttl_s is None or board.is_pinned(model, node.name) or place.users:
            return False
        due = max(place.used_at, place.since) + ttl_s
        if board.now < due:
            board.wake(due)
            return False
        return not board.waiting.count(model)

    def _keep(self, node: Node, model: str) -> bool:
        """Load what is pinned there and is not there, where there is room. Returns whether the node
        has something to do now."""
        place = node.places.get(model)
        if place is not None and (place.has_memory or place.cools_down(self._board.now)):
            return False
        if self.placing.ask(model, (node.name,)) is None:
            return False
        return self._add(model, (node.name,))

    def _defragment(self, node: Node) -> None:
        """A worker that has loaded and unloaded a lot has its memory in pieces; a new process has
        not."""
        board = self._board
        limit = board.policy.eviction.defrag_after_cycles
        used = {place.replica.device for place in node.places.values() if place.has_memory}
        known = {device.id for device in board.state(node.name).devices}
        for device, cycles in node.cycles.items():
            if limit and cycles >= limit and device in known - used:
                self.plans.restart(node.name, device)
                return

    # replicas

    def _replicate(self, model: str) -> None:
        """One more, where there is free room, if the operator or the demand wants more."""
        board = self._board
        places = [board.places[model][replica.node] for replica in board.ready[model]]
        wanted = board.catalogue.entry(model).replicas
        if self._is_crowded(model, all(place.busy > place.capacity for place in places)):
            wanted = max(wanted, len(places) + 1)
        is_used = any(place.incarnation and place.used_at > float("-inf") for place in places)
        if not is_used or len(places) >= wanted or board.is_coming(model):
            return
        if self.placing.ask(model) is not None and self._add(model, None):
            self._crowded.pop(model, None)

    def _is_crowded(self, model: str, is_now: bool) -> bool:
        board = self._board
        if not is_now:
            self._crowded.pop(model, None)
            return False
        since = self._crowded.setdefault(model, board.now)
        board.wake(board.now + LOOK_S)
        return board.now - since >= CROWDED_S

    def _add(self, model: str, only: tuple[str, ...] | None) -> bool:
        decision = decide(self._board, model, only=only, may_evict=False)
        if isinstance(decision, Placement):
            self.plans.load(model, decision, is_kept=True, may_evict=False)
            return True
        return False

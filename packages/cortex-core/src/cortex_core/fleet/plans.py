"""What is being changed on each node, one thing at a time, step by step.

A load begins with the victims that must make room, one after the other. Between two steps the
node's memory is read afresh and everything is decided anew for that node, so a plan never acts upon
what was true before its own last step; and whoever waited may have left meanwhile.

    begin ──► (read) ──► unload a victim ──► read ──► … ──► load ──► over
                 ▲               │                            │
                 └───conflict────┴────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from cortex_core.errors import Fault
from cortex_core.fleet import refusals
from cortex_core.fleet.board import Board, Node
from cortex_core.fleet.events import Load, OrderEnded, ReadState, Restart, Unload
from cortex_core.fleet.placement import Placement
from cortex_core.fleet.views import decide

__all__ = ["Plan", "Plans"]

# So many times in a row may somebody else be quicker before a plan is given up, and so long is the
# node left to them then.
CONFLICTS = 3
REST_S = 1.0

# A load is tried on the best node and, if that fails, on the next best one.
TRIES = 2

# These say nothing of the model: the node is away, or about to be.
_PASSING = frozenset({"node_unavailable", "shutting_down"})


class Plan:
    """kind: what it comes to. step: the order under way, whose number is `order`. victim: the model
    being unloaded. is_kept: a load that needs nobody to wait for it. asker: the operator's request
    behind an unload."""

    __slots__ = (
        "asker",
        "conflicts",
        "device",
        "is_kept",
        "kind",
        "may_evict",
        "model",
        "node",
        "options",
        "order",
        "reason",
        "step",
        "victim",
    )

    def __init__(self, kind: Literal["load", "unload", "restart"], node: str, model: str) -> None:
        self.kind: Literal["load", "unload", "restart"] = kind
        self.node = node
        self.model = model
        self.device = ""
        self.step: Literal["read", "unload", "load", "restart"] = "read"
        self.order = 0
        self.victim = model
        self.options: dict[str, Any] = {}
        self.reason: Literal["room", "ttl", "operator"] = "room"
        self.is_kept = False
        self.may_evict = True
        self.asker: str | None = None
        self.conflicts = 0


class Plans:
    """`unloaded(request, node, fault)` is told how an operator's unload ended."""

    def __init__(self, board: Board, unloaded: Callable[[str, str, Fault | None], None]) -> None:
        self._board = board
        self._unloaded = unloaded

    # beginnings

    def load(
        self,
        model: str,
        placement: Placement,
        options: dict[str, Any] | None = None,
        *,
        is_kept: bool = False,
        may_evict: bool = True,
    ) -> None:
        board = self._board
        node = board.nodes[placement.node]
        plan = self._begin(model, node, options, may_evict)
        plan.is_kept = is_kept
        victims = f"; before it, {', '.join(placement.evict)} must leave" if placement.evict else ""
        board.place(model, node.name).tell("{}{}", placement.why[-1], victims)
        for ticket in board.waiting.in_turn(model):
            ticket.load_began(board.now)
            board.note(ticket, "waits for a load on {}{}", node.name, victims)
        if node.is_stale:
            self._read(plan)
        else:
            self._follow(plan, placement)

    def look(
        self, model: str, node: str, options: dict[str, Any] | None, *, may_evict: bool
    ) -> None:
        """Read the node's memory, and load the model there if it fits then."""
        self._read(self._begin(model, self._board.nodes[node], options, may_evict))

    def _begin(
        self, model: str, node: Node, options: dict[str, Any] | None, may_evict: bool
    ) -> Plan:
        plan = node.plan = Plan("load", node.name, model)
        plan.options = {**self._board.catalogue.entry(model).load_options(), **(options or {})}
        plan.may_evict = may_evict
        return plan

    def unload(
        self, model: str, node: str, reason: Literal["ttl", "operator"], asker: str | None = None
    ) -> None:
        plan = self._board.nodes[node].plan = Plan("unload", node, model)
        plan.reason = reason
        plan.asker = asker
        self._unload(plan)

    def restart(self, node: str, device: str) -> None:
        board = self._board
        plan = board.nodes[node].plan = Plan("restart", node, "")
        plan.device = device
        plan.step = "restart"
        plan.order = board.order()
        board.out.append(Restart(plan.order, node, device))

    # steps

    def ended(self, stimulus: OrderEnded) -> None:
        """An order of a plan that is over already says nothing any more."""
        for node in self._board.nodes.values():
            plan = node.plan
            if plan is not None and plan.order == stimulus.order:
                self._on_end(node, plan, stimulus)
                return

    def node_restarted(self, name: str) -> None:
        """Whatever was under way there has ended with the process that was doing it."""
        plan = self._board.nodes[name].plan
        if plan is not None:
            fault = Fault("node_unavailable", f"the node {name} restarted meanwhile")
            self._on_end(self._board.nodes[name], plan, OrderEnded(plan.order, fault))

    def _on_end(self, node: Node, plan: Plan, stimulus: OrderEnded) -> None:
        if plan.step != "read":
            node.is_stale = True
        match plan.step:
            case "read":
                self._read_ended(node, plan, stimulus)
            case "unload":
                self._unload_ended(node, plan, stimulus)
            case "load":
                self._load_ended(node, plan, stimulus)
            case "restart":
                node.cycles.pop(plan.device, None)
                self._over(plan)

    def _read_ended(self, node: Node, plan: Plan, stimulus: OrderEnded) -> None:
        if stimulus.fault is not None:
            node.rests_until = self._board.now + REST_S
            self._over(plan, stimulus.fault)
            return
        node.is_stale = False
        self._decide_again(plan)

    def _unload_ended(self, node: Node, plan: Plan, stimulus: OrderEnded) -> None:
        board, fault = self._board, stimulus.fault
        victim = board.place(plan.victim, plan.node)
        if fault is None or fault.code == "model_not_found":
            device = victim.replica.device
            node.cycles[device] = node.cycles.get(device, 0) + 1
            if victim.unloaded(board.now):
                board.moved(victim)
            if plan.kind == "load":
                self._read(plan)
            else:
                self._over(plan)
            return
        if victim.withdrew(board.now):
            board.moved(victim)
        if fault.code == "conflict":
            self._look_again(node, plan, fault)
            return
        if plan.kind == "load" and fault.code not in _PASSING:
            cause = f"{plan.victim} could not be unloaded: {fault.message}"
            self._failed(plan, Fault(fault.code, cause))
        self._over(plan, fault)

    def _load_ended(self, node: Node, plan: Plan, stimulus: OrderEnded) -> None:
        board, fault = self._board, stimulus.fault
        place = board.place(plan.model, plan.node)
        if fault is None:
            board.failed_loads.pop(plan.model, None)
            if stimulus.state is None:
                place.withdrew(board.now)
            else:
                place.loaded(stimulus.state, board.now)
            device = place.replica.device
            node.cycles[device] = node.cycles.get(device, 0) + 1
            board.moved(place)
            self._over(plan)
            return
        if fault.code != "conflict" and fault.code not in _PASSING:
            self._failed(plan, fault)
            self._over(plan, fault)
            return
        if place.withdrew(board.now):
            board.moved(place)
        if fault.code == "conflict":
            self._look_again(node, plan, fault)
            return
        node.rests_until = board.now + REST_S
        self._over(plan, fault)

    def _failed(self, plan: Plan, fault: Fault) -> None:
        """The model cannot be loaded there for now. Those who wait hear so after the last try."""
        board = self._board
        place = board.place(plan.model, plan.node)
        place.failed(fault, board.now)
        board.moved(place)
        tries = board.failed_loads.get(plan.model, 0) + 1
        board.failed_loads[plan.model] = tries
        waiting = board.waiting.in_turn(plan.model)
        for ticket in waiting:
            board.note(ticket, "the load on {} failed: {}", plan.node, fault.message)
        if tries >= TRIES:
            error = refusals.load_failed(board, plan.model)
            for ticket in waiting:
                board.refuse(ticket, ticket.fault or error)

    def _look_again(self, node: Node, plan: Plan, fault: Fault) -> None:
        """Somebody else was quicker, or uses what we thought idle."""
        plan.conflicts += 1
        if plan.conflicts < CONFLICTS and not (plan.kind == "unload" and plan.reason == "ttl"):
            self._read(plan)
            return
        node.rests_until = self._board.now + REST_S
        self._over(plan, fault)

    def _decide_again(self, plan: Plan) -> None:
        board = self._board
        if plan.kind == "unload":
            place = board.nodes[plan.node].places.get(plan.model)
            if place is None or place.said is None:
                self._over(plan)
            else:
                self._unload(plan)
            return
        if not self._is_wanted(plan):
            board.place(plan.model, plan.node).tell("nobody waits for it any more")
            self._over(plan)
            return
        decision = decide(
            board, plan.model, only=(plan.node,), may_evict=plan.may_evict, within=plan
        )
        if isinstance(decision, Placement):
            self._follow(plan, decision)
        else:
            board.place(plan.model, plan.node).tell("no longer fits: {}", "; ".join(decision.why))
            self._over(plan)

    def _is_wanted(self, plan: Plan) -> bool:
        return plan.is_kept or any(
            ticket.node in (None, plan.node) for ticket in self._board.waiting.in_turn(plan.model)
        )

    def _follow(self, plan: Plan, placement: Placement) -> None:
        if placement.evict:
            plan.victim = placement.evict[0]
            self._unload(plan)
            return
        board = self._board
        plan.step = "load"
        plan.order = board.order()
        plan.device = placement.device
        place = board.place(plan.model, plan.node)
        place.ordered("load", board.now)
        board.moved(place)
        board.out.append(
            Load(
                plan.order,
                plan.model,
                plan.node,
                plan.device,
                board.state(plan.node).holdings,
                plan.options,
            )
        )

    def _unload(self, plan: Plan) -> None:
        board = self._board
        plan.step = "unload"
        plan.order = board.order()
        victim = board.place(plan.victim, plan.node)
        if plan.kind == "load":
            victim.tell("makes room for {}", plan.model)
        victim.ordered("unload", board.now)
        board.moved(victim)
        holdings = board.state(plan.node).holdings
        is_gentle = plan.reason != "operator"
        board.out.append(
            Unload(plan.order, plan.victim, plan.node, holdings, is_gentle, plan.reason)
        )

    def _read(self, plan: Plan) -> None:
        plan.step = "read"
        plan.order = self._board.order()
        self._board.out.append(ReadState(plan.order, plan.node))

    def _over(self, plan: Plan, fault: Fault | None = None) -> None:
        board = self._board
        board.nodes[plan.node].plan = None
        if plan.asker is not None:
            self._unloaded(plan.asker, plan.node, fault)
        board.stir()

"""Those who wait for a model that is ready nowhere: what is done for them, or why nothing can be.

Wait for what is on its way; else ask the nodes what a load would take; else load it where placement
says; else let somebody finish who is in the way; else refuse, and say why.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cortex_core.fleet import refusals
from cortex_core.fleet.board import Board
from cortex_core.fleet.events import Estimate, EstimateCame
from cortex_core.fleet.placement import NoPlacement, Placement
from cortex_core.fleet.plans import Plans
from cortex_core.fleet.views import decide, why_not
from cortex_core.fleet.waiting import Ticket

__all__ = ["Placing"]

# A node that has not answered for so long is left out of a decision that others allow.
ANSWER_S = 2.0

# What a node once refused is asked again after this time: a file may have come since.
ASK_AGAIN_S = 30.0

# These say that the question did not arrive; everything else is an answer.
_UNHEARD = frozenset(
    {"node_unavailable", "upstream_failed", "stalled", "internal_error", "shutting_down"}
)
UNHEARD_AGAIN_S = 5.0


class Placing:
    def __init__(self, board: Board, plans: Plans) -> None:
        self._board = board
        self._plans = plans

    # stimuli

    def estimated(self, stimulus: EstimateCame) -> None:
        board = self._board
        node = board.nodes.get(stimulus.node)
        if node is None:
            return
        node.asked.pop(stimulus.model, None)
        node.answered[stimulus.model] = board.now
        fault = stimulus.fault
        if fault is None or fault.code not in _UNHEARD:
            board.ledger.estimated(stimulus.model, stimulus.node, stimulus.needs, fault)
        board.unsettled.add(stimulus.model)

    # those who wait

    def advance(self, model: str) -> None:
        """Do the next thing for those who still wait, and could not be sent."""
        board = self._board
        tickets = board.waiting.in_turn(model)
        for node in dict.fromkeys(ticket.node for ticket in tickets):
            self._advance(model, node, [ticket for ticket in tickets if ticket.node == node])
        if not board.waiting.count(model):
            board.failed_loads.pop(model, None)
            self._stop_drains(model)

    def _advance(self, model: str, node: str | None, tickets: list[Ticket]) -> None:
        board = self._board
        if node is not None and node not in board.nodes:
            for ticket in tickets:
                board.refuse(ticket, refusals.no_such_node(board, node))
            return
        only = None if node is None else (node,)
        if board.is_coming(model, node):
            for ticket in tickets:
                ticket.load_began(board.now)
            return
        for ticket in tickets:
            ticket.load_ended(board.now)
        if any(node in (None, replica.node) for replica in board.ready.get(model, ())):
            return  # it has failed these, who wait for news of it
        is_asked = self.ask(model, only, tickets[0].options)
        if is_asked is None:
            return
        is_aside = any(node in (None, place.node) for place in board.tripped.get(model, ()))
        decision = decide(board, model, only=only, may_evict=not is_aside)
        if isinstance(decision, Placement):
            self._plans.load(model, decision, _options_of(tickets), may_evict=not is_aside)
        elif (stale := self._stale(model, only)) is not None:
            self._plans.look(model, stale, _options_of(tickets), may_evict=not is_aside)
        elif not (is_asked or is_aside or self._is_passing(model, decision, only)):
            error = refusals.nowhere(board, model, decision)
            for ticket in tickets:
                board.refuse(ticket, ticket.fault or error)
        elif decision.after_drain is not None:
            self._drain_for(model, decision.after_drain, tickets)

    # estimates

    def _to_ask(self, model: str, only: Iterable[str] | None) -> list[str]:
        """The nodes that might load it."""
        board = self._board
        return [
            name
            for name in (board.nodes if only is None else only)
            if board.is_usable(name) and not why_not(board, board.nodes[name], model)
        ]

    def _is_answered(self, model: str, name: str) -> bool:
        board = self._board
        answered = board.nodes[name].answered.get(model)
        if not board.ledger.is_estimated(model, name):
            return answered is not None and board.now - answered < UNHEARD_AGAIN_S
        if board.ledger.fault(model, name) is None:
            return True
        return answered is not None and board.now - answered < ASK_AGAIN_S

    def ask(
        self, model: str, only: Iterable[str] | None = None, options: dict[str, Any] | None = None
    ) -> bool | None:
        """Ask the nodes that have not answered what the model takes. None = their answers are to be
        waited for; True = some are still awaited, but not by everybody; False = all are there."""
        board = self._board
        is_asked = False
        wait_until = 0.0
        for name in self._to_ask(model, only):
            node = board.nodes[name]
            if model not in node.asked:
                if self._is_answered(model, name):
                    continue
                node.asked[model] = board.now
                entry = board.catalogue.entry(model)
                board.out.append(
                    Estimate(model, name, {**entry.estimate_options(), **(options or {})})
                )
            is_asked = True
            wait_until = max(wait_until, node.asked[model] + ANSWER_S)
        if wait_until > board.now:
            board.wake(wait_until)
            return None
        return is_asked

    def survey(self) -> None:
        """Ask each node that has nothing to do about one listed model that it has never been asked
        about: so that a client can be told where a model would fit, and the first request for it
        waits for its load alone. One at a time, because a question may take a node to a hub."""
        board = self._board
        for name, node in board.nodes.items():
            if node.plan is None and not node.asked:
                model = next((one for one in board.catalogue.ids if self._is_new(one, name)), None)
                if model is not None:
                    self.ask(model, (name,))

    def _is_new(self, model: str, name: str) -> bool:
        board = self._board
        if board.ledger.is_estimated(model, name) or model in board.nodes[name].answered:
            return False
        return bool(self._to_ask(model, (name,)))

    # making room

    def _stale(self, model: str, only: Iterable[str] | None) -> str | None:
        """A node that may have more room than when it was last read."""
        board = self._board
        for name in board.nodes if only is None else only:
            node = board.nodes[name]
            is_free = node.plan is None and board.is_usable(name)
            if node.is_stale and is_free and not why_not(board, node, model):
                return name
        return None

    def _is_passing(self, model: str, decision: NoPlacement, only: Iterable[str] | None) -> bool:
        """Whether what is in the way goes by itself."""
        board = self._board
        if decision.is_worth_waiting:
            if decision.retry_at is not None:
                board.wake(max(decision.retry_at, board.now))
            return True
        places = board.places.get(model, {})
        return any(
            board.now < board.nodes[name].rests_until
            or (name in places and places[name].state in ("draining", "unloading"))
            for name in (board.nodes if only is None else only)
            if board.is_usable(name)
        )

    def _drain_for(self, model: str, placement: Placement, tickets: list[Ticket]) -> None:
        """Where all who could make room stay busy, some of them get no new requests."""
        board = self._board
        due = min(ticket.came_at for ticket in tickets) + board.policy.eviction.drain_after_s
        if board.now < due:
            board.wake(due)
            return
        for victim in placement.evict:
            place = board.place(victim, placement.node)
            if place.drained_for is None and place.drain(model, board.now):
                board.moved(place)

    def _stop_drains(self, model: str) -> None:
        board = self._board
        for node in board.nodes.values():
            for place in node.places.values():
                if place.drained_for == model and place.drain(None, board.now):
                    board.moved(place)


def _options_of(tickets: list[Ticket]) -> dict[str, Any] | None:
    """The first operator's, if there is one among them."""
    return next((ticket.options for ticket in tickets if ticket.is_operators), None)

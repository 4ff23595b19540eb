"""Requests: where each goes, who waits, and what happens to one that its replica failed.

A request for a model that is ready is sent at once, which must cost next to nothing; everything
else here is for those that cannot be.
"""

from __future__ import annotations

from cortex_core.errors import Fault
from cortex_core.fleet import refusals
from cortex_core.fleet.board import Board
from cortex_core.fleet.breaker import NEWS_S
from cortex_core.fleet.events import (
    AnswerBegan,
    Interest,
    LoadWanted,
    RequestCame,
    RequestEnded,
    RequestFailed,
    Send,
)
from cortex_core.fleet.lifecycle import Place
from cortex_core.fleet.waiting import Ticket

__all__ = ["Routing"]

# Who waits is looked at this often, whatever else happens.
LOOK_S = 1.0

# What a replica is to blame for. One that is full, draining or no longer there is not ill: it turns
# requests away.
_ILL = frozenset({"upstream_failed", "node_unavailable", "stalled", "internal_error"})


class Routing:
    def __init__(self, board: Board) -> None:
        self._board = board

    # stimuli

    def came(self, stimulus: RequestCame) -> None:
        board = self._board
        interest = stimulus.interest
        model = board.catalogue.resolve(interest.model)
        ticket = board.tickets[interest.request] = Ticket(
            interest.request, model, interest.caller, interest.prefix, board.now
        )
        if model in board.ready and model not in board.tripped:
            board.ledger.asked(model, board.now)
            self._send(ticket, self._choose(ticket, board.ready[model]))
        elif not board.is_known(model):
            board.refuse(ticket, refusals.unknown(board, interest.model))
        elif board.waiting.count(model) >= board.policy.max_waiting:
            board.refuse(ticket, refusals.too_many(board, model))
        else:
            board.ledger.asked(model, board.now)
            self._wait(ticket)

    def load_wanted(self, stimulus: LoadWanted) -> None:
        """An operator's request: no limit of the line holds for it, and that of time only while no
        load is under way where it wants to go. A download takes as long as it takes."""
        board = self._board
        interest = Interest(stimulus.request, stimulus.model)
        model = board.catalogue.resolve(interest.model)
        ticket = board.tickets[interest.request] = Ticket(
            interest.request, model, "", (), board.now
        )
        ticket.is_operators = True
        ticket.node = stimulus.node
        ticket.options = dict(stimulus.options)
        self._wait(ticket)

    def began(self, stimulus: AnswerBegan) -> None:
        ticket = self._board.tickets.get(stimulus.request)
        if ticket is None or ticket.replica is None or ticket.place is None:
            return
        if ticket.place.breaker.began(ticket.request):
            ticket.place.tell("answers again")
            self._board.index(ticket.model)

    def ended(self, stimulus: RequestEnded) -> None:
        board = self._board
        ticket = board.tickets.pop(stimulus.request, None)
        if ticket is None:
            return
        if ticket.replica is None:
            board.note(ticket, "left while it waited")
            board.waiting.leave(ticket)
            board.unsettled.add(ticket.model)
            return
        fault, node = stimulus.fault, ticket.replica.node
        place = self._freed(ticket)
        if fault is not None:
            board.note(ticket, "failed by {}: {}", node, fault.message)
        if place is None:
            return
        if fault is not None and fault.code in _ILL and not board.is_draining(node):
            self._blame(place, ticket, fault)
        elif not stimulus.has_answer:
            place.breaker.unused(ticket.request)
        elif place.breaker.succeeded(ticket.request):
            place.tell("answers again")
            board.index(ticket.model)

    def failed(self, stimulus: RequestFailed) -> None:
        """A request is failed once and tried again, and the next time it is refused. One that was
        turned away, because another gateway has had the model unloaded, say, has not been tried:
        it waits as before, and until it has waited for as long as anybody may. One that met a drain
        on its way may go to the same replica again when the drain has ended."""
        board = self._board
        ticket = board.tickets.get(stimulus.request)
        if ticket is None or ticket.replica is None:
            return
        fault, former = stimulus.fault, ticket.replica
        place = self._freed(ticket)
        board.note(ticket, "failed by {}: {}", former.node, fault.message)
        has_met_drain = place is not None and board.is_draining(former.node)
        is_ill = fault.code in _ILL and not has_met_drain
        if place is not None and is_ill:
            self._blame(place, ticket, fault)
        elif place is not None:
            place.breaker.unused(ticket.request)
        if is_ill and ticket.is_retried:
            board.refuse(ticket, ticket.fault or fault)
            return
        ticket.is_retried = ticket.is_retried or is_ill
        ticket.fault = ticket.fault or fault
        if place is not None and not has_met_drain:
            ticket.spent += ((place, place.incarnation),)
        ticket.decide_by = board.now + NEWS_S
        self._wait(ticket)

    # those who wait

    def serve(self, model: str) -> None:
        """Send whoever can be sent, and refuse whoever has waited long enough."""
        board = self._board
        for ticket in board.waiting.in_turn(model):
            if ticket.is_operators and self._is_loading(ticket.node):
                ticket.deadline = board.now + board.policy.max_wait_s
            if place := self._replica_for(ticket):
                board.waiting.leave(ticket)
                self._send(ticket, place)
            elif board.now >= ticket.deadline:
                board.refuse(ticket, ticket.fault or refusals.overdue(board, ticket))
            elif self._is_hopeless(model):
                board.refuse(ticket, ticket.fault or refusals.put_aside(board, model))
            elif ticket.decide_by is not None and board.now >= ticket.decide_by:
                self._decide(ticket)

    def _is_loading(self, name: str | None) -> bool:
        """Whether anything is being loaded, or made room for, on this node, or on any."""
        board = self._board
        return any(
            (node.plan is not None and node.plan.kind == "load")
            or any(place.is_coming for place in node.places.values())
            for node in board.nodes.values()
            if name in (None, node.name) and board.topology.is_reachable(node.name)
        )

    def _is_hopeless(self, model: str) -> bool:
        """Whether it is ready only where not even a probe was answered, and on its way nowhere:
        who waits would wait for the next pause to end, and the one after it."""
        board = self._board
        tripped = board.tripped.get(model, ())
        return (
            bool(tripped)
            and model not in board.ready
            and not board.is_coming(model)
            and all(place.breaker.is_chronic(board.now) for place in tripped)
        )

    def _decide(self, ticket: Ticket) -> None:
        """A replica has failed it, and still looks well: there is nothing to wait for."""
        places = self._board.places.get(ticket.model, {})
        if any(
            place.is_ready
            and (place, place.incarnation) in ticket.spent
            and self._board.is_usable(node)
            for node, place in places.items()
        ):
            assert ticket.fault is not None
            self._board.refuse(ticket, ticket.fault)

    def _wait(self, ticket: Ticket) -> None:
        board = self._board
        ticket.replica = None
        if ticket.deadline <= board.now:
            ticket.deadline = board.now + board.policy.max_wait_s
        board.waiting.join(ticket)
        board.unsettled.add(ticket.model)
        board.wake(board.now + LOOK_S)

    # sending

    def _replica_for(self, ticket: Ticket) -> Place | None:
        """A place that takes it now."""
        board = self._board
        for place in board.tripped.get(ticket.model, ()):
            if place.breaker.wants_probe(board.now) and _may_go(ticket, place):
                place.breaker.probe = ticket.request
                place.tell("tried again with the request {}", ticket.request)
                return place
        replicas = board.ready.get(ticket.model, ())
        if ticket.node is not None or ticket.spent:
            places = board.places.get(ticket.model, {})
            replicas = [r for r in replicas if _may_go(ticket, places[r.node])]
        return self._choose(ticket, replicas) if replicas else None

    def _choose(self, ticket: Ticket, replicas: list) -> Place:
        board = self._board
        places = board.places[ticket.model]
        if len(replicas) == 1:
            return places[replicas[0].node]
        busy = {replica.node: places[replica.node].busy for replica in replicas}
        capacity = {replica.node: places[replica.node].capacity for replica in replicas}
        return places[board.affinity.choose(replicas, ticket.prefix, busy, capacity).node]

    def _send(self, ticket: Ticket, place: Place) -> None:
        board = self._board
        replica = ticket.replica = place.replica
        ticket.place = place
        ticket.sent_at = board.now
        place.busy += 1
        place.used_at = board.now
        if ticket.prefix:
            board.affinity.served(replica, ticket.prefix)
        ticket.load_ended(board.now)
        if place.busy > place.capacity:
            board.wake(board.now + LOOK_S)  # it may want another replica
        board.note(ticket, "sent to {} on {}", replica.node, replica.device)
        board.out.append(Send(ticket.request, replica, ticket.load_s))

    def _freed(self, ticket: Ticket) -> Place | None:
        """It is no longer in flight; its place, unless that node is no longer configured, or was
        not for a while."""
        board = self._board
        assert ticket.replica is not None
        place = board.places.get(ticket.model, {}).get(ticket.replica.node)
        ticket.replica = None
        if place is None or place is not ticket.place:
            return None
        place.busy -= 1
        place.used_at = board.now
        if place.busy == 0:
            board.stir_blocked()
        return place

    def _blame(self, place: Place, ticket: Ticket, fault: Fault) -> None:
        if place.breaker.failed(ticket.request, ticket.sent_at, self._board.now):
            until = place.breaker.until or 0.0
            place.tell("put aside for {:.0f} s: {}", until - self._board.now, fault.message)
            self._board.index(place.model)


def _may_go(ticket: Ticket, place: Place) -> bool:
    """Not to another node than it must; not to a replica that has failed it and has not been loaded
    anew since."""
    if ticket.node is not None and place.node != ticket.node:
        return False
    return (place, place.incarnation) not in ticket.spent

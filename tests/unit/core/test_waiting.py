"""The lines that requests wait in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_core.fleet.waiting import Ticket, WaitingRoom


def _ticket(request: str, caller: str = "", model: str = "m") -> Ticket:
    return Ticket(request, model, caller, (), 0.0)


def _turns(room: WaitingRoom, model: str = "m") -> list[str]:
    return [ticket.request for ticket in room.in_turn(model)]


def test_one_callers_requests_are_served_in_the_order_they_came():
    room = WaitingRoom()
    for request in ("r1", "r2", "r3"):
        room.join(_ticket(request))
    assert _turns(room) == ["r1", "r2", "r3"]


def test_a_caller_with_many_requests_delays_another_by_one_only():
    room = WaitingRoom()
    for request in ("a1", "a2", "a3"):
        room.join(_ticket(request, "a"))
    room.join(_ticket("b1", "b"))
    assert _turns(room) == ["a1", "b1", "a2", "a3"]


def test_whoever_was_served_has_the_next_turn_last():
    room = WaitingRoom()
    tickets = {name: _ticket(name, name[0]) for name in ("a1", "a2", "b1", "b2")}
    for ticket in tickets.values():
        room.join(ticket)
    room.leave(tickets["a1"])
    assert _turns(room) == ["b1", "a2", "b2"]


def test_models_have_lines_of_their_own():
    room = WaitingRoom()
    room.join(_ticket("r1", model="m"))
    room.join(_ticket("r2", model="n"))
    assert _turns(room, "n") == ["r2"]
    assert room.counts == {"m": 1, "n": 1}


def test_a_line_that_is_empty_is_forgotten():
    room = WaitingRoom()
    ticket = _ticket("r1")
    room.join(ticket)
    room.leave(ticket)
    assert room.models == []
    assert room.count("m") == 0
    assert _turns(room) == []


def test_who_does_not_wait_leaves_nothing():
    room = WaitingRoom()
    room.join(_ticket("r1", "a"))
    room.leave(_ticket("r2", "a"))
    room.leave(_ticket("r3", "b"))
    room.leave(_ticket("r4", model="n"))
    assert room.counts == {"m": 1}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30))
def test_everybody_who_joined_and_has_not_left_has_exactly_one_turn(steps: list[tuple[str, bool]]):
    room = WaitingRoom()
    inside: dict[str, Ticket] = {}
    for number, (caller, stays) in enumerate(steps):
        ticket = _ticket(f"r{number}", caller)
        room.join(ticket)
        inside[ticket.request] = ticket
        if not stays:
            room.leave(inside.pop(next(iter(inside))))
    turns = room.in_turn("m")
    assert sorted(ticket.request for ticket in turns) == sorted(inside)
    assert room.count("m") == len(inside)
    # Before anybody's second turn, everybody has had a first one.
    first = [ticket.caller for ticket in turns[: len({ticket.caller for ticket in turns})]]
    assert len(set(first)) == len(first)

"""What holds whatever happens to a fleet, in whatever order: requests that come, leave and fail,
nodes that die and return, loads that fail, and another gateway at work on the same nodes."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cortex_core.errors import Fault
from cortex_core.fleet.events import (
    AnswerBegan,
    DrainWanted,
    Interest,
    LoadWanted,
    PinWanted,
    RequestCame,
    RequestEnded,
    Tick,
    UnloadWanted,
)
from tests.unit.core.simulated_fleet import MAX_WAIT_S, MODELS, NODES, SIZES, SimulatedFleet

T = TypeVar("T")

models = st.sampled_from([*MODELS, "alias", "unheard-of"])
held = st.sampled_from([model for model in MODELS if model != "vast"])
nodes = st.sampled_from(list(NODES))
which = st.integers(0, 20)
faults = st.sampled_from(
    [
        None,
        None,
        None,
        Fault("insufficient_memory", "too little"),
        Fault("upstream_failed", "it broke"),
        Fault("stalled", "no progress"),
    ]
)


class Fleets(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fleet = SimulatedFleet()
        self.names = 0

    @initialize(up=st.sets(nodes, min_size=1))
    def begin(self, up: set[str]) -> None:
        for name in sorted(up):
            self.fleet.observe(self.fleet.nodes[name])

    def name(self) -> str:
        self.names += 1
        return f"r{self.names}"

    # requests

    @rule(model=models, caller=st.sampled_from("xy"), prefix=st.sampled_from([(), (1, 2), (1, 3)]))
    def request_comes(self, model: str, caller: str, prefix: tuple[int, ...]) -> None:
        request = self.name()
        self.fleet.waiting[request] = model
        self.fleet.tell(RequestCame(Interest(request, model, caller, prefix)))

    @precondition(lambda self: self.fleet.flying)
    @rule(index=which)
    def request_ends(self, index: int) -> None:
        self.fleet.end_request(_pick(list(self.fleet.flying), index))

    @precondition(lambda self: self.fleet.flying)
    @rule(index=which)
    def request_fails(self, index: int) -> None:
        self.fleet.fail_request(_pick(list(self.fleet.flying), index))

    @precondition(lambda self: self.fleet.flying)
    @rule(index=which)
    def answer_begins(self, index: int) -> None:
        self.fleet.tell(AnswerBegan(_pick(list(self.fleet.flying), index)))

    @precondition(lambda self: self.fleet.flying)
    @rule(index=which)
    def answer_breaks_off(self, index: int) -> None:
        request = _pick(list(self.fleet.flying), index)
        del self.fleet.flying[request]
        fault = Fault("upstream_failed", "broken")
        self.fleet.tell(RequestEnded(request, has_answer=False, fault=fault))

    @precondition(lambda self: self.fleet.waiting)
    @rule(index=which)
    def waiter_leaves(self, index: int) -> None:
        request = _pick(list(self.fleet.waiting), index)
        del self.fleet.waiting[request]
        self.fleet.tell(RequestEnded(request, has_answer=False))

    @precondition(lambda self: self.fleet.flying)
    @rule(index=which)
    def client_leaves(self, index: int) -> None:
        request = _pick(list(self.fleet.flying), index)
        del self.fleet.flying[request]
        self.fleet.tell(RequestEnded(request, has_answer=False))

    # orders

    @precondition(lambda self: self.fleet.orders)
    @rule(index=which, fault=faults)
    def order_ends(self, index: int, fault: Fault | None) -> None:
        self.fleet.carry_out(_pick(list(self.fleet.orders.values()), index), fault)

    @precondition(lambda self: self.fleet.questions)
    @rule(index=which, fault=faults)
    def estimate_comes(self, index: int, fault: Fault | None) -> None:
        self.fleet.answer(_pick(self.fleet.questions, index), fault)

    # nodes

    @rule(name=nodes)
    def node_speaks(self, name: str) -> None:
        self.fleet.observe(self.fleet.nodes[name])

    @rule(name=nodes)
    def node_is_lost(self, name: str) -> None:
        self.fleet.lose(self.fleet.nodes[name])

    @rule(name=nodes)
    def node_restarts(self, name: str) -> None:
        """Before anybody noticed that it was away."""
        node = self.fleet.nodes[name]
        node.boot += 1
        node.version = 0
        node.holdings = 0
        node.models.clear()
        node.users.clear()
        for order in [one for one in self.fleet.orders.values() if one.node == name]:
            del self.fleet.orders[order.order]
        self.fleet.questions = [one for one in self.fleet.questions if one.node != name]
        self.fleet.observe(node)

    @rule(name=nodes, model=held)
    def another_gateway_loads(self, name: str, model: str) -> None:
        node = self.fleet.nodes[name]
        if model not in node.models and SIZES[model] <= node.free:
            node.gain(model)

    @rule(name=nodes, model=held)
    def another_gateway_unloads(self, name: str, model: str) -> None:
        node = self.fleet.nodes[name]
        if model in node.models and not self.fleet.users(node, model):
            node.lose(model)

    @rule(name=nodes, model=held, users=st.integers(0, 2))
    def another_gateway_asks(self, name: str, model: str, users: int) -> None:
        node = self.fleet.nodes[name]
        if model in node.models:
            node.users[model] = users

    # operators

    @rule(model=models, node=st.none() | nodes)
    def operator_loads(self, model: str, node: str | None) -> None:
        if model in ("vast", "unheard-of"):
            return
        request = self.name()
        self.fleet.waiting[request] = model
        self.fleet.tell(LoadWanted(request, model, node))

    @rule(model=models, node=st.none() | nodes)
    def operator_unloads(self, model: str, node: str | None) -> None:
        request = self.name()
        self.fleet.unloads.add(request)
        self.fleet.tell(UnloadWanted(request, model, node))

    @rule(name=nodes, is_draining=st.booleans())
    def operator_drains(self, name: str, is_draining: bool) -> None:
        (self.fleet.drained.add if is_draining else self.fleet.drained.discard)(name)
        self.fleet.tell(DrainWanted(name, is_draining))

    @rule(model=held, is_pinned=st.booleans())
    def operator_pins(self, model: str, is_pinned: bool) -> None:
        (self.fleet.pins.add if is_pinned else self.fleet.pins.discard)(model)
        self.fleet.tell(PinWanted(model, is_pinned))

    # time

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5, 6.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.fleet.now += seconds
        self.fleet.tell(Tick())

    # what holds

    @invariant()
    def lines_hold_exactly_those_who_wait(self) -> None:
        waiting = sum(self.fleet.conductor.waiting.values())
        assert waiting == len(self.fleet.waiting)

    @invariant()
    def who_is_sent_is_counted(self) -> None:
        counted = sum(self.fleet.conductor.in_flight(node) for node in NODES)
        assert counted == len(self.fleet.flying)

    @invariant()
    def who_waits_is_looked_at_again(self) -> None:
        """A Tick is wished for within a second of the last one."""
        if self.fleet.waiting:
            assert self.fleet.wakes

    def teardown(self) -> None:
        """Once everything that is under way has ended, everybody has been answered."""
        fleet = self.fleet
        for node in fleet.nodes.values():
            node.users.clear()
            fleet.observe(node)
        for _ in range(int(2 * MAX_WAIT_S) + 10):
            for request in list(fleet.flying):
                fleet.end_request(request)
            for question in list(fleet.questions):
                fleet.answer(question)
            for order in list(fleet.orders.values()):
                if order.order in fleet.orders:
                    fleet.carry_out(order)
            fleet.now += 1.0
            fleet.tell(Tick())
            if not (fleet.waiting or fleet.flying or fleet.unloads or fleet.orders):
                break
        assert not fleet.waiting, fleet.waiting
        assert not fleet.unloads
        assert fleet.conductor.waiting == {}


TestFleets = Fleets.TestCase
TestFleets.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    suppress_health_check=[HealthCheck.too_slow],
)


def _pick(found: list[T], index: int) -> T:
    return found[index % len(found)]

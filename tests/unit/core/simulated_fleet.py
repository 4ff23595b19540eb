"""Neurons that carry out a conductor's orders, as values: they have memory, may die, are restarted,
and are shared with another gateway. What a conductor must never do fails here, at the moment when
it does it.
"""

from __future__ import annotations

from cortex_core.config.gateway import EvictionSection
from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.conductor import Conductor, Policy
from cortex_core.fleet.discovery import DeviceState, ModelState, NodeState, WorkerState
from cortex_core.fleet.events import (
    Done,
    Estimate,
    EstimateCame,
    Instruction,
    Load,
    NodeLost,
    NodeObserved,
    OrderEnded,
    ReadState,
    Refuse,
    RequestEnded,
    RequestFailed,
    Restart,
    Send,
    Stimulus,
    Unload,
    WakeAt,
)

Order = Load | Unload | ReadState | Restart

SIZES = {"small": 2, "middle": 4, "large": 7, "huge": 10, "pinned": 3, "vast": 99}
MODELS = tuple(SIZES)
ENTRIES = [
    ModelEntry(id="small", ttl_s=15.0),
    ModelEntry(id="middle", replicas=2),
    ModelEntry(id="large", residency_priority=1),
    ModelEntry(id="huge"),
    ModelEntry(id="pinned", pinned_on=("a",)),
    ModelEntry(id="vast"),
]
NODES = {"a": 10, "b": 8, "c": 4}
MAX_WAIT_S = 20.0


class SimulatedNode:
    """`users` are the other gateway's requests, by model."""

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self.boot = 1
        self.version = 0
        self.holdings = 0
        self.models: set[str] = set()
        self.users: dict[str, int] = {}
        self.is_up = False
        self.is_draining = False

    @property
    def free(self) -> int:
        return self.total - sum(SIZES[model] for model in self.models)

    def gain(self, model: str) -> None:
        self.models.add(model)
        self.holdings += 1

    def lose(self, model: str) -> None:
        self.models.discard(model)
        self.users.pop(model, None)
        self.holdings += 1


class SimulatedFleet:
    def __init__(self) -> None:
        self.now = 1000.0
        self.nodes = {name: SimulatedNode(name, total) for name, total in NODES.items()}
        policy = Policy(
            max_waiting=4,
            max_wait_s=MAX_WAIT_S,
            eviction=EvictionSection(min_residency_s=3, drain_after_s=4, defrag_after_cycles=3),
        )
        self.conductor = Conductor(Catalogue(ENTRIES, {"alias": "small"}), policy, NODES)
        self.orders: dict[int, Order] = {}
        self.questions: list[Estimate] = []
        self.waiting: dict[str, str] = {}  # request → model
        self.flying: dict[str, Send] = {}
        self.attempts: dict[str, int] = {}
        self.unloads: set[str] = set()  # operators' that are not answered
        self.operators: set[str] = set()
        self.wakes: list[float] = []
        self.drained: set[str] = set()
        self.pins: set[str] = set()

    # what goes in

    def tell(self, stimulus: Stimulus) -> None:
        for instruction in self.conductor.handle(stimulus, self.now):
            self._take(instruction)

    def observe(self, node: SimulatedNode) -> None:
        node.version += 1
        node.is_up = True
        self.tell(NodeObserved(node.name, self.state(node)))

    def state(self, node: SimulatedNode) -> NodeState:
        device = DeviceState(
            "gpu",
            "cuda",
            "",
            WorkerState("ready"),
            memory_total_bytes=node.total,
            memory_free_bytes=node.free,
        )
        models = [self._model_state(node, model) for model in sorted(node.models)]
        boot = f"b{node.boot}"
        return NodeState(
            node.name, boot, node.version, node.is_draining, [device], models, node.holdings
        )

    def lose(self, node: SimulatedNode) -> None:
        """Its orders and questions end, as the gateway promises."""
        node.is_up = False
        self.tell(NodeLost(node.name, "silent"))
        fault = Fault("node_unavailable", "lost")
        for question in [one for one in self.questions if one.node == node.name]:
            self.questions.remove(question)
            self.tell(EstimateCame(question.model, node.name, fault=fault))
        for order in [one for one in self.orders.values() if one.node == node.name]:
            self.end_order(order, fault)

    def answer(self, question: Estimate, fault: Fault | None = None) -> None:
        self.questions.remove(question)
        needs = {} if fault else {"gpu": SIZES[question.model]}
        self.tell(EstimateCame(question.model, question.node, needs, fault))

    def end_order(self, order: Order, fault: Fault | None, state: ModelState | None = None) -> None:
        del self.orders[order.order]
        self.tell(OrderEnded(order.order, fault, state))

    def end_request(self, request: str) -> None:
        """As its replica ends it: well, if it is there."""
        send = self.flying.pop(request)
        if send.replica.model in self.nodes[send.replica.node].models:
            self.tell(RequestEnded(request))
        else:
            self._fail(request)

    def fail_request(self, request: str) -> None:
        self.flying.pop(request)
        self._fail(request)

    def _fail(self, request: str) -> None:
        self.waiting[request] = ""
        self.tell(RequestFailed(request, Fault("upstream_failed", "broken")))

    # orders

    def carry_out(self, order: Order, fault: Fault | None = None) -> None:
        """To its end, unless it has to wait for requests that run."""
        node = self.nodes[order.node]
        if isinstance(order, ReadState):
            if fault is None:
                self.observe(node)
            self.end_order(order, fault)
        elif isinstance(order, Restart):
            assert not node.models, "a worker was restarted that held a model"
            self.end_order(order, fault)
        elif order.holdings != node.holdings:
            self.end_order(order, Fault("conflict", "holdings differ"))
        elif fault is not None:
            self.end_order(order, fault)
        elif isinstance(order, Load):
            self._load(node, order)
        else:
            self._unload(node, order)

    def _load(self, node: SimulatedNode, order: Load) -> None:
        need = SIZES[order.model]
        assert need <= node.free, f"{order.model} does not fit on {node.name}"
        node.gain(order.model)
        self.end_order(order, None, self._model_state(node, order.model))

    def _unload(self, node: SimulatedNode, order: Unload) -> None:
        users = self.users(node, order.model)
        if order.if_idle and users:
            self.end_order(order, Fault("conflict", f"{users} requests run"))
        elif not users:
            node.lose(order.model)
            self.end_order(order, None)

    def users(self, node: SimulatedNode, model: str) -> int:
        return self.ours(node.name, model) + node.users.get(model, 0)

    def ours(self, node: str, model: str) -> int:
        return sum(
            send.replica.node == node and send.replica.model == model
            for send in self.flying.values()
        )

    def _model_state(self, node: SimulatedNode, model: str) -> ModelState:
        running = self.users(node, model)
        size = SIZES[model]
        return ModelState(model, "gpu", "ready", "", memory_bytes=size, parallel=2, running=running)

    # what comes out

    def _take(self, instruction: Instruction) -> None:
        match instruction:
            case WakeAt(at):
                self.wakes.append(at)
            case Send(request, replica):
                assert request in self.waiting, "sent, but nobody waits"
                assert self.nodes[replica.node].is_up, "sent to a node out of reach"
                assert replica.node not in self.drained, "sent to a drained node"
                del self.waiting[request]
                self.flying[request] = instruction
                self.attempts[request] = self.attempts.get(request, 0) + 1
                assert self.attempts[request] <= 2, "tried a third time"
            case Refuse(request) | Done(request):
                if request in self.unloads:
                    self.unloads.remove(request)
                else:
                    assert isinstance(instruction, Refuse)
                    assert request in self.waiting, "refused, but nobody waits"
                    del self.waiting[request]
            case Estimate():
                same = [q for q in self.questions if q == instruction]
                assert not same, "asked twice at once"
                self.questions.append(instruction)
            case Load() | Unload() | ReadState() | Restart():
                self._begin(instruction)

    def _begin(self, order: Order) -> None:
        busy = [one for one in self.orders.values() if one.node == order.node]
        assert not busy, f"{order} while {busy} was under way"
        assert self.nodes[order.node].is_up, f"{order} to a node out of reach"
        if isinstance(order, Load):
            assert order.node not in self.drained, "loaded on a drained node"
            assert SIZES[order.model] <= self.nodes[order.node].total, "can never fit"
        if isinstance(order, Unload) and order.reason != "operator":
            assert order.if_idle, "would not mind who uses it"
            assert order.model not in self.pins, "evicted what an operator pinned"
            assert (order.model, order.node) != ("pinned", "a"), "evicted what is pinned"
            assert not self.ours(order.node, order.model), "evicted what is busy"
        self.orders[order.order] = order

"""The gateway's fleet: the shell around the conductor, which decides everything.

Takes stimuli in (what nodes say, what requests and operators want, that time has passed), has the
orders that come of them carried out, and wakes whoever waits for an answer. Holds no policy.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from cortex_core.errors import Fault
from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.conductor import Conductor, Policy
from cortex_core.fleet.discovery import NodeState
from cortex_core.fleet.events import (
    Done,
    Instruction,
    Interest,
    Load,
    NodeLost,
    NodeObserved,
    OrderEnded,
    Refuse,
    RequestEnded,
    Send,
    Stimulus,
    Tick,
    Unload,
    WakeAt,
)
from cortex_core.fleet.topology import Replica, Topology
from cortex_gateway.metrics import FleetFacts, NodeFacts
from cortex_gateway.orders import Order, Orders
from cortex_gateway.seat import Seat
from cortex_gateway.upstream import Upstream

__all__ = ["FIRST_CONTACT_S", "Applicant", "Fleet", "Seat"]

# A client that arrives while the gateway is starting waits this long, at most, for every node to
# have reported or failed once; without it the first requests after a restart would be refused, or
# would load a model a second time beside the node that has it.
FIRST_CONTACT_S = 2.0

_log = logging.getLogger("cortex.fleet")


class Applicant(Protocol):
    """Whoever waits for the conductor's answer."""

    def sent(self, replica: Replica, load_s: float | None) -> None: ...
    def refused(self, fault: Fault) -> None: ...
    def done(self) -> None: ...


class Fleet:
    """An async context manager: leaving it ends the orders and the timer.

    told_order: hears how each order has ended.
    """

    def __init__(
        self,
        conductor: Conductor,
        upstream: Upstream,
        load_stall_s: float,
        told_order: Callable[[Order, OrderEnded], None],
    ) -> None:
        self.conductor = conductor
        self.orders = Orders(upstream, self._devices_of, self._told, load_stall_s)
        self._told_order = told_order
        self._applicants: dict[str, Applicant] = {}
        self._again = itertools.count(2)
        self._alarms: list[float] = []
        self._timer: asyncio.TimerHandle | None = None
        self._held: frozenset[str] = frozenset()
        self._unheard = set(self.topology.names)
        self._contacted = asyncio.Event()
        self._heard(None)

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self.orders.close()

    @property
    def topology(self) -> Topology:
        return self.conductor.topology

    # stimuli

    def observed(self, node: str, state: NodeState) -> None:
        was_reachable = self.topology.is_reachable(node)
        known = self.topology.state(node)
        self.handle(NodeObserved(node, state))
        if not was_reachable:
            _log.info('"node up" node=%s boot=%s models=%d', node, state.boot, len(state.models))
        elif known is not None and known.boot != state.boot:
            _log.info('"node restarted" node=%s boot=%s', node, state.boot)
        self._held = frozenset(self.topology.models())
        self.orders.heard(node)
        self._heard(node)

    def lost(self, node: str, cause: str) -> None:
        if self.topology.is_reachable(node) or self.topology.cause(node) != cause:
            _log.warning('"node lost" node=%s cause="%s"', node, cause)
        self.handle(NodeLost(node, cause))
        self.orders.lost(node, cause)
        self._heard(node)
        for applicant in list(self._applicants.values()):
            if isinstance(applicant, Seat) and self._is_ready_elsewhere(applicant):
                applicant.lost(node, cause)

    def _is_ready_elsewhere(self, seat: Seat) -> bool:
        """Whether a node in reach has its model ready. (One that is lost is not in reach.)"""
        return seat.model is not None and any(
            location.reachable and location.model.phase == "ready"
            for location in self.topology.models().get(seat.model, ())
        )

    def configured(self, catalogue: Catalogue, policy: Policy, nodes: Iterable[str]) -> None:
        """Another configuration; see the conductor's."""
        names = list(nodes)
        gone = set(self.topology.names) - set(names)
        self._carry_out_all(self.conductor.configured(catalogue, policy, names, time.monotonic()))
        for name in gone:
            self.orders.lost(name, "it is not configured any more")
        self._held = frozenset(self.topology.models())

    def handle(self, stimulus: Stimulus) -> None:
        """Let the conductor decide, and carry out what it says. A bug in a decision is logged and
        ends nothing else."""
        try:
            self.apply(stimulus)
        except Exception:
            _log.exception('"a bug" stimulus=%s', type(stimulus).__name__)

    def apply(self, stimulus: Stimulus) -> None:
        self._carry_out_all(self.conductor.handle(stimulus, time.monotonic()))

    def free_name(self, wanted: str) -> str:
        """`wanted`, or something like it that no applicant has: clients choose their requests'
        ids, and may choose one twice, or an operator's order's."""
        name = wanted
        while name in self._applicants:
            name = f"{wanted}-{next(self._again)}"
        return name

    def enter(self, request: str, applicant: Applicant, stimulus: Stimulus) -> None:
        """Apply for what `stimulus` says, under the name `request`, which must be free;
        `applicant` is told."""
        assert request not in self._applicants, request
        self._applicants[request] = applicant
        try:
            self.apply(stimulus)
        except BaseException:
            self.leave(request, has_answer=False)
            raise

    def leave(self, request: str, *, has_answer: bool, fault: Fault | None = None) -> None:
        """The end of what `enter` began, however it went; see RequestEnded."""
        self._applicants.pop(request, None)
        self.handle(RequestEnded(request, has_answer, fault))

    # questions

    def seat(self, interest: Interest) -> Seat:
        """Where a request is served, as an async context manager: entering waits for a replica."""
        return Seat(self, interest)

    @property
    def is_contacted(self) -> bool:
        return self._contacted.is_set()

    async def first_contact(self) -> None:
        """Return once every node has reported or failed, or FIRST_CONTACT_S after the first wait
        for it began."""
        try:
            async with asyncio.timeout(FIRST_CONTACT_S):
                await self._contacted.wait()
        except TimeoutError:
            self._contacted.set()

    def known(self, name: str) -> str | None:
        """The id behind a name, of a model that is listed or that any node holds; else None."""
        catalogue = self.conductor.catalogue
        model = catalogue.resolve(name)
        return model if model in self._held or model in catalogue else None

    @property
    def models(self) -> Collection[str]:
        """Every id that is listed, or that any node, reachable or not, holds."""
        return self._held | set(self.conductor.catalogue.ids)

    def facts(self) -> FleetFacts:
        """What the metrics say of this moment."""
        topology = self.topology
        nodes: list[NodeFacts] = []
        for name in topology.names:
            state = topology.state(name)
            is_reachable = topology.is_reachable(name)
            devices = state.devices if state is not None and is_reachable else []
            nodes.append(NodeFacts(name, is_reachable, self.conductor.in_flight(name), devices))
        return FleetFacts(nodes, self.conductor.waiting, self.models)

    def _devices_of(self, node: str) -> list[str]:
        state = self.topology.state(node)
        devices = state.devices if state is not None else []
        return [device.id for device in devices if device.worker.phase != "failed"]

    # instructions

    def _carry_out_all(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            self._carry_out(instruction)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Send():
                if applicant := self._applicants.get(instruction.request):
                    applicant.sent(instruction.replica, instruction.load_s)
            case Refuse():
                if applicant := self._applicants.get(instruction.request):
                    applicant.refused(instruction.fault)
            case Done():
                if applicant := self._applicants.get(instruction.request):
                    applicant.done()
            case WakeAt():
                self._wake_at(instruction.at)
            case _:
                if isinstance(instruction, Load | Unload):
                    _log.info(
                        '"%s" model=%s node=%s',
                        type(instruction).__name__.lower(),
                        instruction.model,
                        instruction.node,
                    )
                self.orders.carry_out(instruction)

    def _told(self, order: Order, stimulus: Stimulus) -> None:
        """An order's end, or what it has read on its way."""
        if isinstance(stimulus, NodeObserved):
            self.observed(stimulus.node, stimulus.state)
            return
        self.handle(stimulus)
        if isinstance(stimulus, OrderEnded):
            if stimulus.fault is not None:
                _log.warning(
                    '"%s failed" node=%s cause="%s"',
                    type(order).__name__.lower(),
                    order.node,
                    stimulus.fault.message,
                )
            self._told_order(order, stimulus)

    def _wake_at(self, at: float) -> None:
        at = math.ceil(at * 100) / 100  # many deadlines are as good as the same
        if at not in self._alarms:
            heapq.heappush(self._alarms, at)
            if self._alarms[0] == at:
                self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._alarms:
            in_s = max(0.0, self._alarms[0] - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(in_s, self._ring)

    def _ring(self) -> None:
        now = time.monotonic()
        is_due = False
        while self._alarms and self._alarms[0] <= now:
            heapq.heappop(self._alarms)
            is_due = True
        self._arm()
        if is_due:
            self.handle(Tick())

    def _heard(self, node: str | None) -> None:
        self._unheard.discard(node or "")
        if not self._unheard:
            self._contacted.set()

"""Carries the conductor's orders out on the neurons, over HTTP.

However an order ends, its end comes back as one stimulus: a node that says no, falls silent,
restarts or is lost meanwhile ends it with a fault. Nothing is decided here, and nothing is tried
twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from cortex_core.errors import (
    CortexError,
    Fault,
    InternalError,
    NodeUnavailable,
    Stalled,
    UpstreamFailed,
    parse_openai,
)
from cortex_core.fleet.discovery import ModelState, NodeState, Operation
from cortex_core.fleet.events import (
    Estimate,
    EstimateCame,
    Load,
    NodeObserved,
    OrderEnded,
    ReadState,
    Restart,
    Stimulus,
    Unload,
)
from cortex_gateway.upstream import NETWORK_ERRORS, Upstream, fault_of

__all__ = ["Order", "Orders"]

T = TypeVar("T")

_End = EstimateCame | OrderEnded
Order = Estimate | Load | Unload | ReadState | Restart

# A neuron answers all of these from what it knows, but for an estimate or a load of a file that
# is on a hub: that may take the reading of a header over a slow line.
ANSWER_S = 30.0

# An operation is looked at whenever its node says that anything has changed, and this often when
# it says nothing.
LOOK_S = 1.0

# So many looks in a row may fail before an operation counts as lost: one lost connection is no
# reason to forget a load that has been running for minutes.
FAILED_LOOKS = 3

# Nodes with dozens of models are asked for many estimates at once when the gateway starts.
AT_ONCE = 4

_log = logging.getLogger("cortex.orders")


class _Estimated(msgspec.Struct):
    """One line of a neuron's estimate; the rest of it is for people."""

    device: str
    total_bytes: int


class _EstimateAnswer(msgspec.Struct):
    total_bytes: int
    devices: list[_Estimated] = []


class _Node:
    """What is under way on one node."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(AT_ONCE)
        self.news = asyncio.Event()
        self.running: dict[asyncio.Task[None], Order] = {}


class Orders:
    """Owner: the fleet, which calls `close`. `told` gets each order's end, and before it what the
    order has read.

    devices_of: the ids of a node's working devices. stall_s: a load that shows no progress for so
    long is given up, and taken back.
    """

    def __init__(
        self,
        upstream: Upstream,
        devices_of: Callable[[str], list[str]],
        told: Callable[[Order, Stimulus], None],
        stall_s: float,
    ) -> None:
        self._upstream = upstream
        self._devices_of = devices_of
        self._told = told
        self._nodes: dict[str, _Node] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.stall_s = stall_s

    def carry_out(self, order: Order) -> None:
        """Begin; returns at once."""
        node = self._nodes.setdefault(order.node, _Node())
        task = asyncio.create_task(self._run(node, order), name=f"order for {order.node}")
        node.running[task] = order
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def heard(self, name: str) -> None:
        """The node has said how it is: what it was told to do may be done."""
        if node := self._nodes.get(name):
            node.news.set()
            node.news = asyncio.Event()

    def lost(self, name: str, cause: str) -> None:
        """The node cannot be reached: nobody will hear how its orders end, so they end now."""
        node = self._nodes.get(name)
        if node is None:
            return
        fault = NodeUnavailable(f"the node {name} was lost meanwhile: {cause}").fault
        running, node.running = node.running, {}
        for task, order in running.items():
            task.cancel()
            self._told(order, _end(order, fault=fault))

    async def close(self) -> None:
        """End everything under way, and tell nobody."""
        for node in self._nodes.values():
            node.running = {}
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, node: _Node, order: Order) -> None:
        task = asyncio.current_task()
        assert task is not None
        began = time.monotonic()
        try:
            end = await self._carried_out(node, order)
        except CortexError as error:
            end = _end(order, fault=error.fault)
        except NETWORK_ERRORS as error:
            end = _end(order, fault=fault_of(order.node, error).fault)
        except Exception:
            _log.exception('"a bug in an order" node=%s', order.node)
            end = _end(order, fault=InternalError("the gateway failed; its log says how").fault)
        if node.running.pop(task, None) is None:
            return  # the node was lost, and its orders with it
        if isinstance(end, OrderEnded):
            end = msgspec.structs.replace(end, took_s=time.monotonic() - began)
        self._told(order, end)

    async def _carried_out(self, node: _Node, order: Order) -> _End:
        match order:
            case Estimate():
                return await self._estimate(node, order)
            case Load():
                return _end(order, await self._load(node, order))
            case Unload():
                body = {
                    "model": order.model,
                    "if_holdings": order.holdings,
                    "if_idle": order.if_idle,
                }
                operation = await self._begin(node, order.node, "/models/unload", body)
                # One that waits for requests takes as long as they do.
                stall_s = self.stall_s if order.if_idle else None
                await self._ended(node, order.node, operation, stall_s)
            case ReadState():
                state = await self._ask(node, order.node, "GET", "/discovery", None, NodeState)
                self._told(order, NodeObserved(order.node, state))
            case Restart():
                path = f"/devices/{quote(order.device, safe='')}/restart"
                operation = await self._begin(node, order.node, path, {})
                await self._ended(node, order.node, operation, self.stall_s)
        return _end(order)

    async def _estimate(self, node: _Node, order: Estimate) -> EstimateCame:
        """What the model would take on each device that takes it; only when none does, why.
        Sampling takes no memory, and a neuron's estimate knows nothing of it."""
        options = {name: value for name, value in order.options.items() if name != "sampling"}
        needs: dict[str, int] = {}
        faults: list[Fault] = []

        async def ask(device: str) -> None:
            body = {**options, "model": order.model, "device": device}
            try:
                answer = await self._ask(
                    node, order.node, "POST", "/models/estimate", body, _EstimateAnswer
                )
            except CortexError as error:
                faults.append(error.fault)
            except NETWORK_ERRORS as error:
                faults.append(fault_of(order.node, error).fault)
            else:
                mine = [part.total_bytes for part in answer.devices if part.device == device]
                needs[device] = mine[0] if mine else answer.total_bytes

        devices = self._devices_of(order.node)
        if not devices:
            raise NodeUnavailable(f"the node {order.node} has no device that works")
        await asyncio.gather(*map(ask, devices))
        return EstimateCame(order.model, order.node, needs, None if needs else faults[0])

    async def _load(self, node: _Node, order: Load) -> ModelState | None:
        body = {**order.options, "model": order.model, "if_holdings": order.holdings}
        if order.device is not None:
            body["device"] = order.device
        operation = await self._begin(node, order.node, "/models/load", body)
        try:
            return await self._ended(node, order.node, operation, self.stall_s)
        except Stalled:
            body = {"model": order.model, "force": True}
            with contextlib.suppress(CortexError, *NETWORK_ERRORS):
                await self._begin(node, order.node, "/models/unload", body)
            raise

    async def _begin(self, node: _Node, name: str, path: str, body: dict[str, Any]) -> Operation:
        return await self._ask(node, name, "POST", path, body, Operation)

    async def _ended(
        self, node: _Node, name: str, operation: Operation, stall_s: float | None
    ) -> ModelState | None:
        """Follow an operation to its end; what came of it. Raises its fault, or Stalled."""
        path = "/operations/" + quote(operation.id, safe="")
        moved = time.monotonic()
        failed = 0
        while operation.phase == "running":
            news = node.news
            former = operation.progress
            try:
                operation = await self._ask(node, name, "GET", path, None, Operation)
                failed = 0
            except NETWORK_ERRORS:
                failed += 1
                if failed == FAILED_LOOKS:
                    raise
            now = time.monotonic()
            if operation.progress != former:
                moved = now
            elif stall_s is not None and now - moved >= stall_s:
                raise Stalled(
                    f"the {operation.kind} of {operation.model!r} on {name} stood still at "
                    f"{operation.progress:.0%} for {stall_s:g} s"
                )
            if operation.phase == "running":
                # Not `wait_for`, which may miss that it is cancelled when the news come meanwhile.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await news.wait()
        if operation.phase == "failed":
            cause = f"the {operation.kind} on {name} failed, without a cause"
            raise CortexError.from_fault(operation.fault or UpstreamFailed(cause).fault)
        return operation.result

    async def _ask(
        self,
        node: _Node,
        name: str,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        kind: type[T],
    ) -> T:
        """One question and its answer as `kind`. Raises the neuron's refusal, or NETWORK_ERRORS."""
        neuron = self._upstream.neurons.get(name)
        if neuron is None:
            raise NodeUnavailable(f"the node {name} is not configured any more")
        sent = None if body is None else msgspec.json.encode(body)
        headers = None if body is None else {"Content-Type": "application/json"}
        async with node.turns:
            response = await neuron.ask(method, path, sent, headers=headers, silence_s=ANSWER_S)
            async with response:
                raw = await response.read()
        if response.status == 401:
            raise UpstreamFailed(f"the node {name} refused the gateway's token (HTTP 401)")
        if response.status >= 400:
            raise parse_openai(raw, status=response.status)
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamFailed(
                f"the node {name} answered {method} {path} with what cannot be read: {error}"
            ) from None


def _end(order: Order, state: ModelState | None = None, fault: Fault | None = None) -> _End:
    if isinstance(order, Estimate):
        return EstimateCame(order.model, order.node, fault=fault)
    return OrderEnded(order.order, fault, state)

"""However an order ends, its end comes back as one stimulus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from cortex_core.config.gateway import NeuronEntry
from cortex_core.errors import Fault
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
from cortex_gateway.orders import Order, Orders
from cortex_gateway.upstream import Upstream
from tests.fleet.conftest import eventually
from tests.fleet.scripted_neuron import ScriptedNeuron

pytestmark = pytest.mark.asyncio


class Desk:
    """Orders for one scripted node, and what was told of them."""

    def __init__(self, a: ScriptedNeuron, upstream: Upstream, stall_s: float) -> None:
        self.a = a
        self.told: list[Stimulus] = []
        self._news = asyncio.Event()
        self.devices = [device.id for device in a.state.devices]
        self.orders = Orders(upstream, lambda _: self.devices, self._tell, stall_s)

    def _tell(self, order: Order, stimulus: Stimulus) -> None:
        self.told.append(stimulus)
        self._news.set()

    async def end_of(self, order: Order) -> Stimulus:
        """The newest stimulus once `order` has told at least one."""
        self._news.clear()
        self.orders.carry_out(order)
        await asyncio.wait_for(self._news.wait(), 10)
        return self.told[-1]

    async def fault_of(self, order: Order) -> Fault:
        end = await self.end_of(order)
        assert isinstance(end, OrderEnded | EstimateCame)
        assert end.fault is not None
        return end.fault


@asynccontextmanager
async def a_desk(stall_s: float = 60.0) -> AsyncIterator[Desk]:
    async with (
        ScriptedNeuron("a", "old") as a,
        Upstream([NeuronEntry("a", a.endpoint)], 1.0) as upstream,
    ):
        a.shelf.sizes["new"] = 4000
        desk = Desk(a, upstream, stall_s)
        try:
            yield desk
        finally:
            await desk.orders.close()


async def test_an_estimate_says_what_each_device_would_spend() -> None:
    async with a_desk() as desk:
        end = await desk.end_of(Estimate("new", "a", {"context": 512, "sampling": {"top_k": 1}}))
        assert end == EstimateCame("new", "a", {"cpu": 4000})
        assert desk.a.orders[0].json == {"context": 512, "model": "new", "device": "cpu"}


async def test_an_estimate_of_what_is_not_there_has_the_nodes_own_fault() -> None:
    async with a_desk() as desk:
        fault = await desk.fault_of(Estimate("nothing", "a"))
        assert fault == Fault("model_not_found", "a has no 'nothing'", "model")


async def test_a_load_ends_with_the_state_that_came_of_it() -> None:
    async with a_desk() as desk:
        end = await desk.end_of(Load(7, "new", "a", "cpu", 0, {"parallel": 2}))
        assert isinstance(end, OrderEnded)
        assert (end.order, end.fault) == (7, None)
        assert end.state is not None
        assert (end.state.id, end.state.phase) == ("new", "ready")
        assert desk.a.orders[0].json == {
            "parallel": 2,
            "model": "new",
            "if_holdings": 0,
            "device": "cpu",
        }


async def test_a_load_that_the_node_has_decided_otherwise_about_is_a_conflict() -> None:
    async with a_desk() as desk:
        fault = await desk.fault_of(Load(1, "new", "a", None, 5))
        assert (fault.code, fault.param) == ("conflict", "if_holdings")


async def test_a_load_that_fails_ends_with_its_cause() -> None:
    async with a_desk() as desk:
        desk.a.shelf.faults["new"] = Fault("gguf_corrupt", "bad magic")
        assert await desk.fault_of(Load(1, "new", "a", None, 0)) == Fault(
            "gguf_corrupt", "bad magic"
        )


async def test_a_load_that_stands_still_is_given_up_and_taken_back() -> None:
    async with a_desk(stall_s=0.1) as desk:
        desk.a.shelf.gate.clear()
        fault = await desk.fault_of(Load(1, "new", "a", None, 0))
        assert fault.code == "stalled"
        assert "stood still at 0%" in fault.message
        assert desk.a.shelf.said[-1] == ("unload", "new")


async def test_a_node_that_is_lost_ends_its_orders_at_once() -> None:
    async with a_desk() as desk:
        desk.a.shelf.gate.clear()
        desk.orders.carry_out(Load(3, "new", "a", None, 0))
        desk.orders.lost("a", "its event stream ended")
        (end,) = desk.told
        assert isinstance(end, OrderEnded)
        assert end.order == 3
        assert end.fault is not None
        assert end.fault.code == "node_unavailable"
        assert "its event stream ended" in end.fault.message


async def test_a_node_that_forgot_the_operation_ends_it() -> None:
    async with a_desk() as desk:
        desk.a.shelf.gate.clear()
        end = asyncio.create_task(desk.fault_of(Load(1, "new", "a", None, 0)))

        async def is_begun() -> bool:
            return bool(desk.a.shelf.operations)

        await eventually(is_begun)
        desk.a.shelf.operations.clear()
        desk.orders.heard("a")
        assert (await end).code == "not_found"


async def test_a_node_that_is_not_there_is_unavailable() -> None:
    async with a_desk() as desk:
        await desk.a.disappear()
        for order in (Load(1, "new", "a", None, 0), Estimate("new", "a")):
            assert (await desk.fault_of(order)).code == "node_unavailable"


async def test_a_node_that_is_not_configured_any_more_is_unavailable() -> None:
    async with a_desk() as desk:
        assert (await desk.fault_of(ReadState(1, "b"))).code == "node_unavailable"


async def test_a_refused_token_is_the_gateways_fault_and_no_clients() -> None:
    async with a_desk() as desk:
        desk.a.token = "another"
        fault = await desk.fault_of(Load(1, "new", "a", None, 0))
        assert fault.code == "upstream_failed"
        assert "refused the gateway's token" in fault.message


async def test_an_unload_of_a_model_in_use_is_a_conflict() -> None:
    async with a_desk() as desk:
        desk.a.shelf.busy["old"] = 1
        fault = await desk.fault_of(Unload(1, "old", "a", 0, if_idle=True))
        assert (fault.code, fault.param) == ("conflict", "if_idle")


async def test_an_unload_ends_when_the_model_is_gone() -> None:
    async with a_desk() as desk:
        end = await desk.end_of(Unload(1, "old", "a", 0))
        assert end == msgspec.structs.replace(OrderEnded(1), took_s=end.took_s)  # type: ignore[union-attr]
        assert desk.a.state.models == []


async def test_what_a_read_state_has_read_comes_before_its_end() -> None:
    async with a_desk() as desk:
        await desk.end_of(ReadState(4, "a"))
        observed, end = desk.told
        assert observed == NodeObserved("a", desk.a.state)
        assert isinstance(end, OrderEnded)
        assert (end.order, end.fault) == (4, None)


async def test_a_restart_names_its_device() -> None:
    async with a_desk() as desk:
        end = await desk.end_of(Restart(5, "a", "cpu:1"))
        assert isinstance(end, OrderEnded)
        assert end.fault is None
        assert desk.a.orders[0].path == "/devices/cpu%3A1/restart"


async def test_an_answer_that_cannot_be_read_is_the_nodes_fault() -> None:
    async with a_desk() as desk:
        desk.a.state = msgspec.structs.replace(desk.a.state, boot=7)  # type: ignore[arg-type]
        fault = await desk.fault_of(ReadState(1, "a"))
        assert fault.code == "upstream_failed"
        assert "GET /discovery" in fault.message


async def test_an_operation_that_cannot_be_looked_at_any_more_is_over() -> None:
    """Though one or two looks may fail: a load of minutes is not forgotten for that."""
    async with a_desk() as desk:
        desk.a.shelf.gate.clear()
        end = asyncio.create_task(desk.fault_of(Load(1, "new", "a", None, 0)))

        async def is_begun() -> bool:
            return bool(desk.a.shelf.operations)

        await eventually(is_begun)
        await desk.a.disappear()

        async def is_over() -> bool:
            desk.orders.heard("a")
            return end.done()

        await eventually(is_over)
        assert (await end).code == "node_unavailable"


async def test_an_operation_survives_a_look_that_fails() -> None:
    async with a_desk() as desk:
        desk.a.shelf.gate.clear()
        end = asyncio.create_task(desk.end_of(Load(1, "new", "a", None, 0)))

        async def is_begun() -> bool:
            return bool(desk.a.shelf.operations)

        await eventually(is_begun)
        before = len(desk.a.orders)
        desk.a.fails_next = True
        desk.orders.heard("a")

        async def is_looked_at_again() -> bool:
            desk.orders.heard("a")
            return len(desk.a.orders) > before + 1

        await eventually(is_looked_at_again)
        desk.a.shelf.gate.set()
        over = await end
        assert isinstance(over, OrderEnded)
        assert over.fault is None


async def test_a_node_without_a_device_that_works_says_so() -> None:
    async with a_desk() as desk:
        desk.devices.clear()
        fault = await desk.fault_of(Estimate("new", "a"))
        assert (fault.code, fault.message) == (
            "node_unavailable",
            "the node a has no device that works",
        )


async def test_an_unload_that_hangs_though_nobody_uses_the_model_is_given_up() -> None:
    async with a_desk(stall_s=0.1) as desk:
        desk.a.shelf.gate.clear()
        assert (await desk.fault_of(Unload(1, "old", "a", 0))).code == "stalled"


async def test_an_unload_that_waits_for_requests_takes_its_time() -> None:
    async with a_desk(stall_s=0.0) as desk:
        desk.a.shelf.gate.clear()
        end = asyncio.create_task(desk.end_of(Unload(1, "old", "a", 0, if_idle=False)))

        async def is_looked_at() -> bool:
            desk.orders.heard("a")
            return len(desk.a.orders) > 3

        await eventually(is_looked_at)
        assert not end.done()
        end.cancel()

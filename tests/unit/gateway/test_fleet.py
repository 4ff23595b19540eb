"""The shell around the conductor: seats, alarms, and bugs that must not spread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cortex_core.errors import CortexError, ModelNotFound, NoCapacity, UpstreamFailed
from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.conductor import Conductor, Policy
from cortex_core.fleet.discovery import DeviceState, ModelPhase, ModelState, NodeState, WorkerState
from cortex_core.fleet.events import DrainWanted, Interest, Tick, WakeAt
from cortex_gateway.fleet import Fleet
from cortex_gateway.upstream import Upstream


def state(phase: ModelPhase = "ready", version: int = 1, name: str = "a") -> NodeState:
    device = DeviceState("cpu", "cpu", "CPU", WorkerState("ready"))
    model = ModelState("m", "cpu", phase, "/m", memory_bytes=1, parallel=2)
    return NodeState(name, f"{name}-boot", version, False, [device], [model])


@asynccontextmanager
async def a_fleet(*nodes: str, **policy: Any) -> AsyncIterator[Fleet]:
    conductor = Conductor(Catalogue(), Policy(**policy), nodes)
    async with Fleet(conductor, Upstream([], 1.0), 60.0, lambda order, end: None) as fleet:
        yield fleet


def suspends(work: Coroutine[Any, Any, object]) -> bool:
    """Whether it waits for anything before it is done."""
    try:
        work.send(None)
    except StopIteration:
        return False
    work.close()
    return True


async def test_a_seat_whose_replica_is_ready_is_entered_and_left_without_a_pause() -> None:
    async with a_fleet("a") as fleet:
        fleet.observed("a", state())
        seat = fleet.seat(Interest("r", "m"))
        assert not suspends(seat.__aenter__())
        assert (seat.replica.node, seat.attempts, seat.queued_s) == ("a", 1, 0.0)
        assert fleet.conductor.in_flight("a") == 1
        assert not suspends(seat.__aexit__(None, None, None))
        assert fleet.conductor.in_flight("a") == 0


async def test_a_seat_waits_until_its_model_is_ready() -> None:
    async with a_fleet("a") as fleet:
        fleet.observed("a", state("loading"))
        seat = fleet.seat(Interest("r", "m"))
        entering = asyncio.create_task(seat.__aenter__())
        await asyncio.sleep(0)
        assert fleet.facts().waiting == {"m": 1}
        fleet.observed("a", state("ready", 2))
        await entering
        assert seat.queued_s > 0
        assert seat.load_s is not None
        await seat.__aexit__(None, None, None)


async def test_who_is_cancelled_while_it_waits_has_left() -> None:
    async with a_fleet("a") as fleet:
        fleet.observed("a", state("loading"))
        entering = asyncio.create_task(fleet.seat(Interest("r", "m")).__aenter__())
        await asyncio.sleep(0)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert fleet.facts().waiting == {}


async def test_who_is_cancelled_just_as_it_is_sent_has_left_too() -> None:
    async with a_fleet("a") as fleet:
        fleet.observed("a", state("loading"))
        entering = asyncio.create_task(fleet.seat(Interest("r", "m")).__aenter__())
        await asyncio.sleep(0)
        fleet.observed("a", state("ready", 2))
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert fleet.conductor.in_flight("a") == 0


async def test_a_refusal_is_raised_and_leaves_nothing_behind() -> None:
    async with a_fleet("a") as fleet:
        fleet.observed("a", state())
        with pytest.raises(ModelNotFound):
            async with fleet.seat(Interest("r", "other")):
                pass
        async with fleet.seat(Interest("r", "m")) as seat:  # the name is free again
            assert seat.replica.node == "a"


async def test_a_failure_moves_a_seat_to_another_replica_once() -> None:
    async with a_fleet("a", "b") as fleet:
        for name in ("a", "b"):
            fleet.observed(name, state(name=name))
        async with fleet.seat(Interest("r", "m")) as seat:
            first = seat.replica.node
            other = await seat.failed(UpstreamFailed("broke"))
            assert {first, other.node} == {"a", "b"}
            assert seat.attempts == 2
            assert fleet.conductor.in_flight(first) == 0
            with pytest.raises(CortexError, match="broke"):
                await seat.failed(UpstreamFailed("broke again"))
        assert fleet.conductor.in_flight("a") == fleet.conductor.in_flight("b") == 0


async def test_a_wait_that_has_lasted_long_enough_ends_without_any_other_event() -> None:
    async with a_fleet("a", max_wait_s=0.05) as fleet:
        fleet.observed("a", state("draining"))
        with pytest.raises(NoCapacity):
            async with fleet.seat(Interest("r", "m")):
                pass


class _Broken:
    """A conductor with a bug."""

    def __init__(self) -> None:
        self.topology = Conductor(Catalogue(), Policy(), []).topology

    def handle(self, stimulus: object, now: float) -> list[Any]:
        raise ZeroDivisionError


async def test_a_bug_in_a_decision_is_logged_and_ends_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken: Any = _Broken()
    fleet = Fleet(broken, Upstream([], 1.0), 60.0, lambda order, end: None)
    fleet.handle(DrainWanted("a", True))
    assert '"a bug" stimulus=DrainWanted' in caplog.text
    with pytest.raises(ZeroDivisionError):
        async with fleet.seat(Interest("r", "m")):
            pass


class _Alarming(_Broken):
    """Wants Ticks, and notes those that come."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks: list[float] = []
        self.wishes: list[float] = []
        self.news = asyncio.Event()

    def handle(self, stimulus: object, now: float) -> list[Any]:
        if isinstance(stimulus, Tick):
            self.ticks.append(now)
            self.news.set()
            return []
        self.wishes = [now + 0.03, now + 0.01]
        return [WakeAt(at) for at in self.wishes]


async def test_each_moment_that_was_wished_for_gets_its_tick_and_none_comes_early() -> None:
    alarming: Any = _Alarming()
    async with Fleet(alarming, Upstream([], 1.0), 60.0, lambda order, end: None) as fleet:
        fleet.handle(DrainWanted("a", True))
        while len(alarming.ticks) < 2:
            await asyncio.wait_for(alarming.news.wait(), 5)
            alarming.news.clear()
    for tick, wish in zip(alarming.ticks, sorted(alarming.wishes), strict=True):
        assert tick >= wish

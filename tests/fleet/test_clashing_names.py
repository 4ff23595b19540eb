"""Clients choose their requests' ids, and may choose one that something else already has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tests.fleet.conftest import Rig, running_rig
from tests.fleet.scripted_neuron import Call, ScriptedNeuron, answer_hello

pytestmark = pytest.mark.asyncio

MODELS = '[[models]]\nid = "cold"\n[[models]]\nid = "other"\n'


@asynccontextmanager
async def a_slow_shelf(folder: Path) -> AsyncIterator[Rig]:
    """Node a has m; what else it is told to load takes until its gate opens."""
    async with (
        ScriptedNeuron("a", "m", sizes={"cold": 1000, "other": 1000}) as a,
        running_rig(folder, [a], models=MODELS) as rig,
    ):
        await rig.until_reachable("a")
        a.shelf.gate.clear()
        yield rig


async def test_a_request_called_like_an_operators_load_gets_its_own_answer(tmp_path: Path) -> None:
    async with a_slow_shelf(tmp_path) as rig:
        order = await rig.ask("POST", "/admin/models/load", {"model": "cold"})
        name = msgspec.json.decode(order.body)["id"]
        chat = asyncio.create_task(rig.chat("other", {"x-request-id": name}))
        await rig.until_waiting("other", 1)
        rig.a.shelf.gate.set()
        reply = await chat
        assert (reply.status, reply.headers["x-request-id"]) == (200, name)
        assert [call.json["model"] for call in rig.a.calls] == ["other"]
        await rig.until_in_flight("a", 0)
        report = await rig.ask("GET", f"/admin/operations/{name}")
        assert msgspec.json.decode(report.body)["phase"] == "done"


async def test_a_load_called_like_a_waiting_request_comes_about(tmp_path: Path) -> None:
    async with a_slow_shelf(tmp_path) as rig:
        chat = asyncio.create_task(rig.chat("cold", {"x-request-id": "load-1"}))
        await rig.until_waiting("cold", 1)
        load = asyncio.create_task(
            rig.ask("POST", "/admin/models/load", {"model": "other", "wait": True})
        )
        await rig.until_waiting("other", 1)
        rig.a.shelf.gate.set()
        assert ((await chat).status, (await load).status) == (200, 200)
        await rig.until_in_flight("a", 0)


async def test_a_load_called_like_a_request_that_is_being_answered_comes_about(
    tmp_path: Path,
) -> None:
    async with a_slow_shelf(tmp_path) as rig:
        release = asyncio.Event()

        async def script(call: Call) -> None:
            await release.wait()
            await answer_hello(call)

        rig.a.script = script
        rig.a.shelf.gate.set()
        chat = asyncio.create_task(rig.chat(headers={"x-request-id": "load-1"}))
        await rig.until_in_flight("a", 1)
        load = await rig.ask("POST", "/admin/models/load", {"model": "cold", "wait": True})
        assert load.status == 200
        release.set()
        assert (await chat).status == 200
        rig.daemon.wait_log("kind=ok request_id=load-1 ")
        await rig.until_in_flight("a", 0)

"""The wire between a gateway and a real neuron fails, in all the ways that wires have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.fleet.conftest import eventually
from tests.fleet.real.link import Link
from tests.fleet.real.models import catalogue
from tests.fleet.real.rig import RealRig, chat_body, real_rig, running_nodes
from tests.fleet.real.traffic import CHAT, Job, Traffic
from tests.fleet.real.witness import Witness

MODEL = "s.gguf"
SETTINGS: dict[str, Any] = {"idle_timeout_s": 2.0, "first_byte_timeout_s": 20.0, "max_wait_s": 30.0}


class Wired(NamedTuple):
    """`link` is before n0; n1, where there is one, is reached directly."""

    rig: RealRig
    link: Link


@asynccontextmanager
async def wired(
    folder: Path, models: Path, *memory_mb: int, on: tuple[str, ...] = ("n0",)
) -> AsyncIterator[Wired]:
    """MODEL is loaded on these nodes."""
    async with (
        running_nodes(folder, models, *memory_mb) as nodes,
        Link(nodes[0].url) as link,
    ):
        endpoints = {node.name: node.url for node in nodes} | {"n0": link.url}
        async with real_rig(folder, catalogue(), endpoints, **SETTINGS) as rig:
            for node in on:
                await rig.load(MODEL, node)
            yield Wired(rig, link)


async def ask(rig: RealRig) -> tuple[int, str]:
    """A short chat's status, and the node that answered."""
    reply = await rig.ask("POST", CHAT, chat_body(MODEL, 4))
    return reply.status, reply.headers.get("x-cortex-node", "")


@asynccontextmanager
async def stream(rig: RealRig, tokens: int) -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream whose first piece is here."""
    body = chat_body(MODEL, tokens, stream=True)
    async with rig.client.post(rig.url + CHAT, json=body) as response:
        assert response.status == 200
        await response.content.readline()
        yield response


async def last_event(response: aiohttp.ClientResponse) -> dict[str, Any]:
    lines = [line async for line in response.content if line.startswith(b"data: ")]
    return json.loads(lines[-1].removeprefix(b"data: "))


async def phases(rig: RealRig) -> list[str]:
    """Where MODEL is listed, and how."""
    listed = json.loads((await rig.ask("GET", f"/v1/models/{MODEL}")).body)
    return [place["state"] for place in listed["locations"]]


async def test_a_node_that_refuses_is_passed_over_and_its_models_are_not_forgotten(
    tmp_path: Path, models: Path
) -> None:
    async with wired(tmp_path, models, 20, 20, on=("n0", "n1")) as (rig, link):
        await link.become("refuse")
        await rig.until_refused("n0")
        assert await ask(rig) == (200, "n1")
        assert await phases(rig) == ["unreachable", "ready"]
        await link.become("open")
        await rig.until_reachable("n0")
        assert await phases(rig) == ["ready", "ready"]
        assert len(Witness(rig.record).loads) == 2


async def test_who_wants_what_only_an_unreachable_node_has_hears_so(
    tmp_path: Path, models: Path
) -> None:
    async with wired(tmp_path, models, 20) as (rig, link):
        await link.become("refuse")
        await rig.until_refused("n0")
        reply = await rig.ask("POST", CHAT, chat_body(MODEL, 4))
        assert reply.status == 503
        error = json.loads(reply.body)["error"]
        assert error["code"] == "node_unavailable"
        assert "n0 (connection refused)" in error["message"]


async def test_a_black_hole_is_found_out_by_its_silence(tmp_path: Path, models: Path) -> None:
    async with wired(tmp_path, models, 20, 20, on=("n0", "n1")) as (rig, link):
        await link.become("black hole")
        await rig.until_reachable("n0", False)
        assert (await rig.fleet())["n0"]["cause"] == "it fell silent"
        assert await ask(rig) == (200, "n1")
        await link.become("open")
        await rig.until_reachable("n0")
        assert len(Witness(rig.record).loads) == 2


async def test_a_stream_into_a_black_hole_ends_as_stalled(tmp_path: Path, models: Path) -> None:
    async with wired(tmp_path, models, 20) as (rig, link), stream(rig, 400) as response:
        await link.become("black hole")
        assert (await last_event(response))["error"]["code"] == "stalled"


async def test_a_stream_over_a_half_open_connection_ends_as_stalled(
    tmp_path: Path, models: Path
) -> None:
    """The neuron was told that its client has gone, and has nothing left to do."""
    async with wired(tmp_path, models, 20) as (rig, link), stream(rig, 400) as response:
        await link.become("half open")
        assert (await last_event(response))["error"]["code"] == "stalled"
        await link.become("open")
        await rig.until_reachable("n0")
        await eventually(lambda: is_idle(rig))
        assert await ask(rig) == (200, "n0")


async def is_idle(rig: RealRig) -> bool:
    state = await rig.state("n0")
    return all(not model.running for model in state.models)


async def test_a_stream_that_is_cut_says_so_and_the_next_one_is_not(
    tmp_path: Path, models: Path
) -> None:
    async with wired(tmp_path, models, 20) as (rig, link):
        async with stream(rig, 400) as response:
            link.reset()
            assert (await last_event(response))["error"]["code"] == "upstream_failed"
        await rig.until_reachable("n0")
        assert await ask(rig) == (200, "n0")
        assert len(Witness(rig.record).loads) == 1


async def test_a_wire_that_fails_again_and_again_loses_no_model_and_no_request(
    tmp_path: Path, models: Path
) -> None:
    async with wired(tmp_path, models, 20, 20, on=("n0", "n1")) as (rig, link):
        jobs = [Job(f"flap-{i}", CHAT, chat_body(MODEL, 20, stream=i % 2 == 0)) for i in range(60)]
        traffic = Traffic(jobs)
        playing = asyncio.create_task(traffic.play(rig.client, rig.url, 4))
        for count in range(3, len(jobs), 3):
            await traffic.until_seen(count)
            link.reset()
            assert len(await phases(rig)) == 2
        await playing
        endings = {seen.ending for seen in traffic.seen.values()}
        assert endings <= {"complete", "failed"}
        assert {s.code for s in traffic.seen.values() if s.ending == "failed"} <= {
            "upstream_failed"
        }
        assert len(Witness(rig.record).loads) == 2

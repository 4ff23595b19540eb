"""Two gateways that know nothing of each other, and want different things of the same nodes."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from pathlib import Path
from typing import Any

from cortex_core.fleet.events import OrderEnded
from tests.fleet.conftest import eventually
from tests.fleet.real.models import MODELS, catalogue
from tests.fleet.real.recorded_gateway import Handled, Line
from tests.fleet.real.rig import RealRig, chat_body, endpoints_of, real_rig, running_nodes
from tests.fleet.real.traffic import CHAT, Job, Traffic
from tests.fleet.real.witness import Witness

REQUESTS = 60
SETTINGS: dict[str, Any] = {
    "max_wait_s": 60.0,
    "eviction": {"min_residency_s": 0.2, "drain_after_s": 0.5},
}


def conflicts(record: list[Line]) -> int:
    ends = [line.stimulus for line in record if isinstance(line, Handled)]
    faults = [end.fault for end in ends if isinstance(end, OrderEnded)]
    return sum(fault is not None and fault.code == "conflict" for fault in faults)


async def knows_sizes(rig: RealRig) -> bool:
    listed = json.loads((await rig.ask("GET", "/v1/models")).body)["data"]
    return all(model["feasible_on"] for model in listed)


async def test_who_comes_second_looks_again_and_both_get_what_they_want(
    tmp_path: Path, models: Path
) -> None:
    """Both decide while the node is stopped, upon the same state of it."""
    async with (
        running_nodes(tmp_path, models, 40) as nodes,
        real_rig(tmp_path, catalogue(), endpoints_of(nodes), "one") as one,
        real_rig(tmp_path, catalogue(), endpoints_of(nodes), "other") as other,
    ):
        for rig in (one, other):
            await eventually(lambda rig=rig: knows_sizes(rig))
        nodes[0].daemon.signal(signal.SIGSTOP)
        asked = [
            asyncio.create_task(one.ask("POST", CHAT, chat_body("xs.gguf", 4))),
            asyncio.create_task(other.ask("POST", CHAT, chat_body("s.gguf", 4))),
        ]
        await one.until_waiting("xs.gguf", 1)
        await other.until_waiting("s.gguf", 1)
        nodes[0].daemon.signal(signal.SIGCONT)
        assert [reply.status for reply in await asyncio.gather(*asked)] == [200, 200]
        assert conflicts(one.record) + conflicts(other.record) >= 1
        assert Witness(one.record).evictions + Witness(other.record).evictions == []


async def test_two_that_contend_for_memory_starve_nobody_and_commit_nothing_twice(
    tmp_path: Path, models: Path
) -> None:
    async with (
        running_nodes(tmp_path, models, 40, 32) as nodes,
        real_rig(tmp_path, catalogue(), endpoints_of(nodes), "one", **SETTINGS) as one,
        real_rig(tmp_path, catalogue(), endpoints_of(nodes), "other", **SETTINGS) as other,
    ):
        rng = random.Random(9)
        traffics: list[Traffic] = []
        for rig in (one, other):
            jobs = [
                Job(
                    f"{rig.name}-{index}",
                    CHAT,
                    chat_body(rng.choice(MODELS), rng.randint(4, 30), stream=index % 2 == 0),
                )
                for index in range(REQUESTS)
            ]
            traffics.append(Traffic(jobs))
        await asyncio.gather(
            *(t.play(r.client, r.url, 6) for t, r in zip(traffics, (one, other), strict=True))
        )
        for traffic in traffics:
            wrong = {i: seen for i, seen in traffic.seen.items() if seen.ending != "complete"}
            assert not wrong
        for rig in (one, other):
            assert Witness(rig.record).loads

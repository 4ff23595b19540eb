"""One gateway, three real neurons, six models that never fit all at once; and while hundreds of
requests come, nodes and workers are killed, nodes drained, and the configuration changed.

Every request ends in exactly one honest way, nobody suffers from what is done on purpose, and the
record shows that nothing was done that must not be.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.conftest import eventually
from tests.fleet.real.models import catalogue
from tests.fleet.real.recorded_gateway import Line
from tests.fleet.real.rig import Node, RealRig, endpoints_of, real_rig, running_nodes
from tests.fleet.real.traffic import Job, Seen, Traffic, plan, summary
from tests.fleet.real.witness import Witness

REQUESTS = int(os.environ.get("CHAOS_REQUESTS", "500"))
SEED = int(os.environ.get("CHAOS_SEED", "5"))
WIDTH = 16
pytestmark = pytest.mark.timeout(300)  # all of it is the first test's fixture
# The six models together take some 100 MiB, and each of them fits on any two of the nodes.
MEMORY_MB = (44, 36, 40)

MODELS = catalogue(xs='pinned_on = ["n0"]', s="replicas = 2", m="ttl_s = 2.0")
SETTINGS: dict[str, Any] = {
    "max_wait_s": 45.0,
    "first_byte_timeout_s": 45.0,
    "eviction": {"min_residency_s": 0.5, "drain_after_s": 1.0, "defrag_after_cycles": 4},
}
# Of a device that is given up after its fourth crash, three may be brought about.
ACTIONS = ("kill node", "kill worker", "drain", "reload", "take out") * 2 + ("kill worker",)

# What a node's or a worker's violent end may come to, for a request that was there or had to wait
# for it. No other request may end in an error.
HONEST = {
    "upstream_failed", "node_unavailable", "no_capacity", "model_loading",
    "shutting_down", "stalled", "api_error", "overloaded_error",
}  # fmt: skip

_LINE = re.compile(
    r'"request" kind=(?P<kind>\S+) request_id=(?P<id>\S+) model=\S+ node=(?P<node>\S+)'
)


@dataclass
class Disaster:
    """`ended`: when all was well again."""

    what: str
    node: str
    began: float
    ended: float = 0.0


@dataclass
class Chaos:
    """What is known once all is over."""

    traffic: Traffic
    disasters: list[Disaster] = field(default_factory=list)
    log: str = ""
    record: list[Line] = field(default_factory=list)

    def failures(self) -> Iterator[tuple[Job, Seen]]:
        for job in self.traffic.jobs:
            seen = self.traffic.seen[job.id]
            if seen.ending in ("refused", "failed", "cut") and not job.is_bad:
                yield job, seen

    def overlapping(self, seen: Seen) -> list[Disaster]:
        return [d for d in self.disasters if d.began <= seen.ended and d.ended >= seen.began]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Chaos:
    chaos = Chaos(Traffic(plan(REQUESTS, SEED)))
    asyncio.run(_run(chaos, tmp_path_factory.mktemp("chaos"), models))
    counts = summary(list(chaos.traffic.seen.values()))
    print(f"chaos: {counts}; {Counter(d.what for d in chaos.disasters)}")
    return chaos


async def _run(chaos: Chaos, folder: Path, models: Path) -> None:
    async with (
        running_nodes(folder, models, *MEMORY_MB) as nodes,
        real_rig(folder, MODELS, endpoints_of(nodes), **SETTINGS) as rig,
    ):
        traffic = chaos.traffic
        playing = asyncio.create_task(traffic.play(rig.client, rig.url, WIDTH))
        rng = random.Random(SEED)
        actions = rng.sample(ACTIONS, len(ACTIONS))
        for index, action in enumerate(actions, 1):
            await traffic.until_seen(index * REQUESTS // (len(actions) + 1))
            node = nodes[index % len(nodes)]
            await _ACTIONS[action](rig, nodes, node, chaos)
        await playing
        for node in nodes:
            await rig.until_in_flight(node.name, 0)
        chaos.record = rig.record
    chaos.log = rig.daemon.log


async def _kill_node(rig: RealRig, nodes: list[Node], node: Node, chaos: Chaos) -> None:
    disaster = Disaster("kill node", node.name, time.monotonic())
    chaos.disasters.append(disaster)
    await node.kill()
    await rig.until_reachable(node.name, False)
    await node.start()
    await rig.until_reachable(node.name)
    disaster.ended = time.monotonic()


async def _kill_worker(rig: RealRig, nodes: list[Node], node: Node, chaos: Chaos) -> None:
    disaster = Disaster("kill worker", node.name, time.monotonic())
    chaos.disasters.append(disaster)
    pid = await rig.worker_pid(node.name)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    async def is_back() -> bool:
        worker = (await rig.state(node.name)).devices[0].worker
        return worker.phase == "ready" and worker.pid != pid

    await eventually(is_back)
    disaster.ended = time.monotonic()


async def _drain(rig: RealRig, nodes: list[Node], node: Node, chaos: Chaos) -> None:
    """Until it has nothing more to do."""
    assert (await rig.ask("POST", f"/admin/nodes/{node.name}/drain")).status == 200
    await rig.until_in_flight(node.name, 0)
    assert (await rig.ask("POST", f"/admin/nodes/{node.name}/undrain")).status == 200


async def _reload(rig: RealRig, nodes: list[Node], node: Node, chaos: Chaos) -> None:
    """Other times to live, and back."""
    for ttl_s in (4.0, 2.0):
        models = MODELS.replace("ttl_s = 2.0", f"ttl_s = {ttl_s}")
        rig.configure(models, endpoints_of(nodes), **SETTINGS)
        assert await rig.reload() == ["models.m.gguf"]


async def _take_out(rig: RealRig, nodes: list[Node], node: Node, chaos: Chaos) -> None:
    """Its requests go on while it is not configured any more."""
    others = [one for one in nodes if one is not node]
    models = MODELS.replace('"n0"', f'"{others[0].name}"')
    rig.configure(models, endpoints_of(others), **SETTINGS)
    assert f"neurons.{node.name}" in await rig.reload()
    await chaos.traffic.until_seen(len(chaos.traffic.seen) + 5)
    rig.configure(MODELS, endpoints_of(nodes), **SETTINGS)
    await rig.reload()
    await rig.until_reachable(node.name)


_ACTIONS: dict[str, Callable[[RealRig, list[Node], Node, Chaos], Awaitable[None]]] = {
    "kill node": _kill_node,
    "kill worker": _kill_worker,
    "drain": _drain,
    "reload": _reload,
    "take out": _take_out,
}


def _outcomes(chaos: Chaos) -> dict[str, list[tuple[str, str]]]:
    """Request → (kind, node), line by line of the gateway's log."""
    found: dict[str, list[tuple[str, str]]] = {}
    for match in _LINE.finditer(chaos.log):
        found.setdefault(match["id"], []).append((match["kind"], match["node"]))
    return found


def test_every_request_ends_and_no_stream_without_a_word(chaos: Chaos) -> None:
    assert len(chaos.traffic.seen) == REQUESTS
    assert not [(job.id, seen) for job, seen in chaos.failures() if seen.ending == "cut"]


def test_most_requests_are_answered_all_the_same(chaos: Chaos) -> None:
    good = [job for job in chaos.traffic.jobs if not job.is_bad and job.leaves_after_s is None]
    answered = [job for job in good if chaos.traffic.seen[job.id].ending == "complete"]
    assert len(answered) >= 0.9 * len(good)


def test_bad_requests_are_refused_as_such_whatever_happens(chaos: Chaos) -> None:
    bad = [chaos.traffic.seen[job.id] for job in chaos.traffic.jobs if job.is_bad]
    codes = {seen.code for seen in bad}
    assert {seen.ending for seen in bad} == {"refused"}
    assert codes <= {"model_not_found", "invalid_request", "unsupported_parameter"} | HONEST


def test_only_a_violent_end_ends_anybody_in_an_error(chaos: Chaos) -> None:
    wrong = [
        (job.id, seen)
        for job, seen in chaos.failures()
        if seen.code not in HONEST or not chaos.overlapping(seen)
    ]
    assert not wrong


def test_a_stream_breaks_off_only_where_the_violence_was(chaos: Chaos) -> None:
    """So none is cut by an eviction, a drain or a reload."""
    outcomes = _outcomes(chaos)
    wrong = []
    for job, seen in chaos.failures():
        (_, node), *_ = outcomes[job.id]
        where = {disaster.node for disaster in chaos.overlapping(seen)}
        if seen.ending == "failed" and node != "-" and node not in where:
            wrong.append((job.id, seen, node, where))
    assert not wrong


def test_the_gateway_has_one_outcome_for_each_and_it_is_what_its_client_saw(chaos: Chaos) -> None:
    kinds_of = {
        "complete": {"ok"},
        "refused": {"rejected", "upstream_failed", "stalled"},
        "failed": {"rejected", "upstream_failed", "stalled"},
        # Whoever leaves may do so when the answer is whole, or has failed, already.
        "left": {"client_gone", "ok", "upstream_failed", "rejected"},
    }
    outcomes = _outcomes(chaos)
    wrong = {}
    for job in chaos.traffic.jobs:
        seen = chaos.traffic.seen[job.id]
        kinds = [kind for kind, _ in outcomes.get(job.id, ())]
        never_arrived = seen.ending == "left" and not kinds
        if not never_arrived and (len(kinds) != 1 or kinds[0] not in kinds_of[seen.ending]):
            wrong[job.id] = (seen, kinds)
    assert not wrong


def test_the_record_holds_nothing_that_must_not_be(chaos: Chaos) -> None:
    """Never over memory, never a pinned or busy model evicted, one thing at a time on each node;
    and the record played again says the same."""
    witness = Witness(chaos.record)
    assert not witness.flying
    assert not witness.waiting
    assert len(witness.loads) > 6
    assert len(witness.evictions) > 2


def test_the_gateway_has_met_no_bug(chaos: Chaos) -> None:
    assert "a bug" not in chaos.log
    assert "Traceback" not in chaos.log

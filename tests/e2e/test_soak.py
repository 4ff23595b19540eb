"""Mixed traffic in four quarters. Every request ends exactly once, as its client, the gateway and
the neuron all say; then nothing is left running, and memory does not grow.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.e2e.client import eventually, fetch
from tests.e2e.conftest import Stack, gateway_config
from tests.e2e.soak import CONTEXT, Traffic, endless, holding, plan, play
from tests.processes import Daemon, start_gateway, start_neuron

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "400"))  # `make bench` plays 2,000
SEED = 20250101
PARALLEL = 8
# Fewer KV cells than the sequences may use together, so that some are parked in mid-answer; and so
# little host memory for finished ones that it is full long before memory is first looked at. Long
# prompts take several batches, of which others' prompts have a share.
ENGINE = f"""[engine]
parallel = {PARALLEL}
context = {CONTEXT}
kv = "unified"
cells = {CONTEXT + 1024}
batch = 512
host_cache_mb = 8
"""
WIDTH = 20  # clients at once: more than sequences, so that some wait
QUEUED = 6

# How much larger a process may be after the last quarter than after the second. A worker's
# allocator keeps what it frees of parked sequences, 5 MB each, so its size settles late; the other
# two carry nothing from one request to the next.
GROWTH_BYTES = {"gateway": 4 * 2**20, "neuron": 4 * 2**20, "worker": 40 * 2**20}

_LINE = re.compile(r'"request" kind=(?P<kind>\S+) request_id=(?P<id>\S+) (?P<rest>.*)')
_UNFORESEEN = re.compile(r"^\S+Z (warning|error) |Traceback|worker says")
_KIND_OF = {"ok": "ok", "refused": "rejected", "left": "client_gone"}


@dataclass(frozen=True)
class Load:
    """What the neuron says of the model."""

    running: int = 0
    waiting: int = 0
    cells: int = 0
    """That running sequences hold."""


@dataclass
class Soak:
    """What is known once all the traffic is over."""

    stack: Stack
    traffic: Traffic = field(default_factory=Traffic)
    resident: list[dict[str, int]] = field(default_factory=list)
    at_rest: list[Load] = field(default_factory=list)
    queued: list[str] = field(default_factory=list)
    counted: dict[str, Counter[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One line of a log. `had_text`: text had been sent by then."""

    kind: str
    had_text: bool


@pytest.fixture(scope="module")
def soak() -> Iterator[Soak]:
    with (
        start_neuron(config=ENGINE) as neuron,
        start_gateway(gateway_config(neuron.url)) as gateway,
    ):
        soak = Soak(Stack(gateway, neuron))
        asyncio.run(_run(soak))
        # Their last lines come late, or at the latest when they stop.
        assert [daemon.stop() for daemon in (gateway, neuron)] == [0, 0]
        print(_summary(soak))
        yield soak


async def _run(soak: Soak) -> None:
    await eventually(soak.stack.is_servable, "cortex/tiny is servable")
    for quarter in range(4):
        await _leave_the_queue(soak, f"queue{quarter}")
        jobs = plan(REQUESTS // 4, SEED, f"quarter{quarter}")
        await play(soak.stack.url, jobs, WIDTH, soak.traffic)

        async def is_at_rest() -> bool:
            return await _load(soak.stack) == Load()

        await eventually(is_at_rest, "nothing is running or waiting, and no cell is held")
        soak.at_rest.append(await _load(soak.stack))
        soak.resident.append(await _resident(soak.stack))
    gateway = soak.stack.gateway.urls["metrics"]
    soak.counted = {
        "gateway": await _counted(gateway, "cortex_requests_total"),
        "neuron": await _counted(soak.stack.neuron.url, "neuron_requests_total"),
    }


async def _leave_the_queue(soak: Soak, name: str) -> None:
    """Take every sequence, wait until others wait for one, and let those clients go."""
    seated = [endless(f"{name}-seated{index}") for index in range(PARALLEL)]
    queued = [endless(f"{name}-queued{index}") for index in range(QUEUED)]

    async def is_full() -> bool:
        load = await _load(soak.stack)
        return (load.running, load.waiting) == (PARALLEL, 0)

    async def is_queued() -> bool:
        load = await _load(soak.stack)
        return (load.running, load.waiting) == (PARALLEL, QUEUED)

    async with holding(soak.stack.url, seated, soak.traffic):
        await eventually(is_full, "every sequence is taken")
        async with holding(soak.stack.url, queued, soak.traffic):
            await eventually(is_queued, "all others wait")
        await eventually(is_full, "nobody waits any more")
    soak.queued += [job.id for job in queued]


async def _load(stack: Stack) -> Load:
    """As the parent counts requests; the worker tells of its cells once a second."""
    samples = await _samples(stack.neuron.url)
    running, waiting = samples["neuron_requests_running"], samples["neuron_requests_waiting"]
    cells = [s for s in samples["neuron_kv_cells_used"] if s.labels["by"] == "running"]
    return Load(*(int(sum(s.value for s in group)) for group in (running, waiting, cells)))


async def _samples(url: str) -> dict[str, list[Sample]]:
    """What a daemon's /metrics says, by the samples' names."""
    text = (await fetch("GET", f"{url}/metrics")).body
    samples: dict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name].append(sample)
    return samples


async def _counted(url: str, name: str) -> Counter[str]:
    """Requests by outcome, as a daemon's metrics have them."""
    counted: Counter[str] = Counter()
    for sample in (await _samples(url))[name]:
        counted[sample.labels["outcome"]] += int(sample.value)
    return counted


async def _resident(stack: Stack) -> dict[str, int]:
    """Bytes, by process."""
    devices = (await fetch("GET", f"{stack.neuron.url}/discovery")).body["devices"]
    pids = {"gateway": stack.gateway.pid, "neuron": stack.neuron.pid}
    pids["worker"] = next(d["worker"]["pid"] for d in devices if d["worker"])
    page = os.sysconf("SC_PAGE_SIZE")
    return {
        name: page * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        for name, pid in pids.items()
    }


def _summary(soak: Soak) -> str:
    """For whoever runs this with -s."""
    endings = Counter(seen.ending for seen in soak.traffic.seen.values())
    grown = (
        f"{who} " + " ".join(f"{quarter[who] / 2**20:.1f}" for quarter in soak.resident)
        for who in soak.resident[0]
    )
    ended = ", ".join(f"{count:,} {ending}" for ending, count in sorted(endings.items()))
    return f"soak: {ended}; resident MiB after each quarter: {'; '.join(grown)}"


def _records(daemon: Daemon) -> dict[str, list[Record]]:
    """What a daemon's log says of each request, line by line."""
    records: dict[str, list[Record]] = {}
    for line in daemon.log.splitlines():
        if match := _LINE.search(line):
            had_text = " ttft_s=" in match["rest"]
            records.setdefault(match["id"], []).append(Record(match["kind"], had_text))
    return records


def test_the_traffic_holds_every_kind_of_request(soak: Soak):
    kinds = Counter(job.kind for job in soak.traffic.jobs.values())
    assert len(soak.traffic.jobs) >= REQUESTS
    assert set(kinds) == {
        "short", "whole", "shared", "long", "cold", "full", "abandoned", "hasty", "too long", "bad",
        "endless",
    }  # fmt: skip


def test_every_request_ends_as_its_kind_should(soak: Soak):
    wrong = {
        id_: (job.kind, soak.traffic.seen[id_])
        for id_, job in soak.traffic.jobs.items()
        if soak.traffic.seen[id_].ending not in job.endings
    }
    assert not wrong


def test_whoever_outgrows_the_context_is_told_that_it_was_the_length(soak: Soak):
    full = [soak.traffic.seen[i] for i, job in soak.traffic.jobs.items() if job.kind == "full"]
    assert {(seen.ending, seen.finish_reason) for seen in full} == {("ok", "length")}
    long = [soak.traffic.seen[i] for i, job in soak.traffic.jobs.items() if job.kind == "too long"]
    assert {seen.status for seen in long} == {400}


@pytest.mark.parametrize("who", ["gateway", "neuron"])
def test_each_has_exactly_one_outcome_and_it_is_what_the_client_saw(soak: Soak, who: str):
    """Except where a client left so early that its request arrived nowhere, or so late that its
    answer was already whole; and but for the gateway's own refusals, which no neuron hears of."""
    records = _records(getattr(soak.stack, who))
    wrong = {}
    for id_, job in soak.traffic.jobs.items():
        seen = soak.traffic.seen[id_]
        kinds = [record.kind for record in records.get(id_, ())]
        right = [[_KIND_OF[seen.ending]]]
        if job.kind == "hasty" and seen.ending == "left":
            right += [[], ["ok"]]
        if who == "neuron" and job.kind == "bad":
            right += [[]]
        if kinds not in right:
            wrong[id_] = (job.kind, seen, kinds)
    assert not wrong
    assert set(records) <= set(soak.traffic.jobs)


@pytest.mark.parametrize("who", ["gateway", "neuron"])
def test_the_metrics_count_what_the_log_tells(soak: Soak, who: str):
    records = _records(getattr(soak.stack, who))
    told = Counter(record.kind for lines in records.values() for record in lines)
    assert soak.counted[who] == told
    assert set(told) == {"ok", "rejected", "client_gone"}


def test_who_left_the_queue_never_had_a_token_and_nobody_else_left_without_a_trace(soak: Soak):
    records = _records(soak.stack.neuron)
    assert len(soak.queued) == 4 * QUEUED
    for id_ in soak.queued:
        assert records[id_] == [Record("client_gone", had_text=False)]
    for id_, job in soak.traffic.jobs.items():
        if job.kind == "abandoned":
            assert records[id_] == [Record("client_gone", had_text=True)]


def test_nothing_is_left_running_after_any_quarter(soak: Soak):
    assert soak.at_rest == [Load()] * 4


@pytest.mark.parametrize("who", ["gateway", "neuron", "worker"])
def test_memory_is_flat(soak: Soak, who: str):
    second, last = soak.resident[1][who], soak.resident[3][who]
    assert last - second < GROWTH_BYTES[who], [resident[who] for resident in soak.resident]


def test_nothing_unforeseen_was_logged(soak: Soak):
    for daemon in (soak.stack.gateway, soak.stack.neuron):
        bad = [line for line in daemon.log.splitlines() if _UNFORESEEN.search(line)]
        assert not bad

"""Workers that are killed or stopped, and what everybody else sees of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from cortex_core.fleet.discovery import NodeState
from tests.e2e.neuron.client import QUESTION, TINY, Client, connect, endless, worker_pid
from tests.processes import Daemon, start_neuron


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model under another id."""
    path = tmp_path_factory.mktemp("twin") / "twin.gguf"
    shutil.copy(str(files("neuron") / "assets" / "tiny.gguf"), path)
    return str(path)


@pytest.fixture(scope="module")
def neuron(twin: str) -> Iterator[Daemon]:
    config = f"""
[devices]
cpu_workers = 2
[engine]
step_timeout_s = 2
[[default_models]]
id = "{TINY}"
device = "cpu:0"
[[default_models]]
id = "{twin}"
device = "cpu:1"
"""
    with start_neuron(config=config, models=()) as daemon:
        yield daemon


@pytest.fixture
async def client(neuron: Daemon, twin: str) -> AsyncIterator[Client]:
    async with connect(neuron.url) as client:
        await client.until_ready(TINY, twin)
        yield client


async def test_a_killed_worker_ends_its_stream_honestly_and_comes_back(client: Client, twin: str):
    before = await client.until_ready()
    expected = await client.chat(QUESTION)
    pid = worker_pid(before, "cpu:0")
    async with client.stream(endless()) as stream:
        await stream.until_text()
        os.kill(pid, signal.SIGKILL)
        await stream.to_the_end()
        assert not stream.is_done
        assert stream.error is not None
        assert stream.error["code"] == "upstream_failed"
        assert f"(pid {pid}) was killed by SIGKILL" in stream.error["message"]
    after = await client.until(
        lambda s: (
            s.devices[0].worker.restarts > before.devices[0].worker.restarts
            and s.models[0].phase == "ready"
        )
    )
    assert worker_pid(after, "cpu:0") != pid
    assert "SIGKILL" in str(after.devices[0].worker.cause)
    assert worker_pid(after, "cpu:1") == worker_pid(before, "cpu:1")
    assert (await client.chat(QUESTION)).text == expected.text


async def test_models_of_a_killed_worker_are_seen_recovering(client: Client):
    state = await client.until_ready()
    phases = []

    async def watch() -> None:
        async for seen in client.states():
            phase = seen.models[0].phase
            if not phases or phases[-1] != phase:
                phases.append(phase)
            if phases[-2:] == ["recovering", "ready"]:
                return

    watching = asyncio.create_task(watch())
    while not phases:
        await asyncio.sleep(0.01)
    os.kill(worker_pid(state, "cpu:0"), signal.SIGKILL)
    await asyncio.wait_for(watching, 20)
    assert phases == ["ready", "recovering", "ready"]


async def test_the_other_workers_stream_is_undisturbed_by_a_kill(client: Client, twin: str):
    request = endless(twin, max_tokens=300)
    async with client.stream(request) as alone:
        expected = await alone.to_the_end()
    state = await client.until_ready(TINY, twin)
    async with client.stream(request) as stream:
        await stream.until_text()
        os.kill(worker_pid(state, "cpu:0"), signal.SIGKILL)
        assert await stream.to_the_end() == expected
        assert stream.is_done


async def test_requests_to_a_recovering_model_are_told_to_come_back(client: Client, twin: str):
    state = await client.until_ready()
    # Stopped, it is found hung only after step_timeout_s; killed, at once.
    os.kill(worker_pid(state, "cpu:1"), signal.SIGKILL)
    await client.until(lambda s: s.models[1].phase == "recovering")
    answer = await client.chat(QUESTION, twin)
    if answer.status != 200:  # it may be back already
        assert answer.status == 503
        assert answer.error["code"] == "model_loading"
        assert int(answer.headers["retry-after"]) > 0
    await client.until_ready(twin)


async def test_a_stopped_worker_is_noticed_within_the_step_timeout(neuron: Daemon, twin: str):
    async with connect(neuron.url) as client:
        state = await client.until_ready(twin)
        pid = worker_pid(state, "cpu:1")
        loop = asyncio.get_running_loop()
        async with client.stream(endless(twin)) as stream:
            await stream.until_text()
            os.kill(pid, signal.SIGSTOP)
            start = loop.time()
            await stream.to_the_end()
            assert stream.error is not None
            assert "hung" in stream.error["message"]
            assert loop.time() - start < 2 * 1.5 + 0.5
        await client.until_ready(twin)


async def kill_until_given_up(client: Client, device: int) -> NodeState:
    for _ in range(4):
        state = await client.until(lambda s: s.devices[device].worker.phase == "ready")
        pid = state.devices[device].worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await client.until(lambda s, pid=pid: s.devices[device].worker.pid != pid)
    return await client.until(lambda s: s.devices[device].worker.phase == "failed")


async def test_a_worker_that_keeps_dying_fails_its_device_and_others_take_over():
    with start_neuron("--cpu-workers", "2") as daemon:
        async with connect(daemon.url) as client:
            await client.until_ready()
            state = await kill_until_given_up(client, 0)
            assert state.models[0].phase == "failed"
            assert (await client.get("/health")).json["failed_devices"].keys() == {"cpu:0"}
            refused = await client.post("/models/load", {"model": TINY, "device": "cpu:0"})
            assert refused.status == 503
            assert refused.error["code"] == "no_capacity"
            assert "4 crashes" in refused.error["message"]
            moved = await client.post("/models/load", {"model": TINY, "wait": True})
            assert moved.json["result"]["device"] == "cpu:1"
            assert (await client.chat(QUESTION)).status == 200


async def test_a_node_whose_only_device_has_failed_says_so_with_the_cause():
    with start_neuron() as daemon:
        async with connect(daemon.url) as client:
            state = await kill_until_given_up(client, 0)
            assert "4 crashes within 10 minutes" in str(state.devices[0].worker.cause)
            assert state.models[0].fault is not None
            health = await client.get("/health")
            assert health.status == 503
            assert health.json["status"] == "failed"
            assert "SIGKILL" in health.json["devices"]["cpu"]
            for refused in (
                await client.chat(QUESTION),
                await client.post("/models/load", {"model": TINY}),
            ):
                assert refused.status == 503
                assert refused.error["code"] == "no_capacity"
                assert "SIGKILL" in refused.error["message"]


async def test_a_default_model_that_is_corrupt_is_shown_as_failed(tmp_path: Path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with start_neuron(models=[TINY, str(bad)]) as daemon:
        async with connect(daemon.url) as client:
            state = await client.until_ready()
            state = await client.until(lambda s: len(s.models) == 2)
            broken = state.models[1]
            assert (broken.id, broken.phase) == (str(bad), "failed")
            assert broken.fault is not None
            assert broken.fault.code == "gguf_unsupported"
            assert "a default model cannot be loaded" in daemon.log

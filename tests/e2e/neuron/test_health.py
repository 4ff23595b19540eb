"""A worker that hangs, crashes or is replaced as planned: who notices, who is told, who is to
blame, and who goes on undisturbed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cortex_core.fleet.discovery import NodeState
from tests.e2e.client import eventually
from tests.e2e.neuron.client import QUESTION, TINY, Client, ask, connect, endless, worker_pid
from tests.processes import Daemon, start_neuron

ASSET = Path(str(files("neuron") / "assets" / "tiny.gguf"))
CHAT = "/v1/chat/completions"
LONG = "Say hello in Japanese. " * 20  # short prompts are not worth keeping


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the neuron may put temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("twin") / "twin.gguf"
    shutil.copy(ASSET, path)
    return str(path)


@pytest.fixture(scope="module")
def neuron(twin: str, folder: Path) -> Iterator[Daemon]:
    config = f"""
[devices]
cpu_workers = 2
[models]
local = ["{Path(twin).parent}"]
[engine]
step_timeout_s = 2
parallel = 2
[[default_models]]
id = "{TINY}"
device = "cpu:0"
"""
    environment = {"TMPDIR": str(folder)}
    with start_neuron(config=config, models=(), environment=environment) as daemon:
        yield daemon


async def samples(client: Client, name: str) -> list[tuple[dict[str, str], float]]:
    scraped = await client.get("/metrics")
    assert scraped.status == 200
    families = text_string_to_metric_families(scraped.body.decode())
    return [(s.labels, s.value) for family in families for s in family.samples if s.name == name]


async def restarts(client: Client, cause: str, device: str = "cpu:0") -> float:
    found = await samples(client, "neuron_worker_restarts_total")
    wanted = {"device": device, "cause": cause}
    return sum(value for labels, value in found if labels == wanted)


def is_back(before: NodeState, device: int = 0) -> Callable[[NodeState], bool]:
    """Once another process serves all the models of that device."""
    name, pid = before.devices[device].id, before.devices[device].worker.pid
    wanted = {model.id for model in before.models if model.device == name}

    def is_true(state: NodeState) -> bool:
        worker = state.devices[device].worker
        ready = {model.id for model in state.models if model.phase == "ready"}
        return worker.phase == "ready" and worker.pid != pid and wanted <= ready

    return is_true


async def test_a_scrape_counts_outcomes_tokens_and_cells(client: Client):
    async def value(name: str, **labels: str) -> float:
        found = await samples(client, name)
        return sum(v for have, v in found if labels.items() <= have.items())

    async def counts() -> list[float]:
        return [
            await value("neuron_requests_total", model=TINY, outcome="ok"),
            await value("neuron_request_ttft_seconds_count", model=TINY),
            await value("neuron_requests_total", model="unknown", code="model_not_found"),
            await value("neuron_prompt_tokens_total", model=TINY, source="computed"),
        ]

    before = await counts()
    answer = await client.chat(QUESTION)
    assert (await client.chat(QUESTION, "nobody/has-it")).status == 404
    usage = answer.json["usage"]
    computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    grown = [after - was for after, was in zip(await counts(), before, strict=True)]
    assert grown == [1, 1, 1, computed]
    assert await value("neuron_model_ready", model=TINY) == 1
    assert await value("neuron_worker_up", device="cpu:0") == 1
    assert await value("neuron_worker_resident_memory_bytes", device="cpu:0") > 1e6

    async def has_reported() -> bool:
        cached = await value("neuron_kv_cells_used", model=TINY, by="cached")
        return 0 < cached < await value("neuron_kv_cells", model=TINY)

    await eventually(has_reported, "the worker reports the cells that the answer has left cached")


# hung


async def test_a_worker_that_is_stopped_while_idle_is_found_and_replaced(
    client: Client, neuron: Daemon
):
    before = await client.until_ready()
    pid = worker_pid(before, "cpu:0")
    os.kill(pid, signal.SIGSTOP)
    after = await client.until(is_back(before))
    assert "hung: no sign of life" in str(after.devices[0].worker.cause)
    assert await restarts(client, "hung_silent") == 1
    assert f"(pid {pid}) hung" in neuron.log
    assert not Path(f"/proc/{pid}").exists()
    assert (await client.chat(QUESTION)).status == 200


# crashes, and who is blamed


async def test_poison_is_refused_at_its_third_try_and_the_cause_is_everywhere():
    with start_neuron() as neuron:
        async with connect(neuron.url) as client:
            told, after = "", await client.until_ready()
            for _ in range(2):
                before = after
                async with client.stream(endless()) as stream:
                    await stream.until_text()
                    os.kill(worker_pid(before), signal.SIGABRT)
                    await stream.to_the_end()
                    assert not stream.is_done
                assert stream.error is not None
                told = stream.error["message"]
                assert "was killed by SIGABRT" in told
                after = await client.until(is_back(before))
                assert after.devices[0].worker.cause == told
            assert told in neuron.log.replace('\\"', '"')
            (info,) = await samples(client, "neuron_worker_last_failure_info")
            assert info == ({"device": "cpu", "cause": told}, 1)
            assert await restarts(client, "sigabrt", "cpu") == 2

            refused = await client.post(CHAT, ask(QUESTION, max_tokens=3))
            assert refused.status == 422
            assert refused.error["code"] == "poison_prompt"
            assert "2 crashes" in refused.error["message"]
            assert "SIGABRT" in refused.error["message"]
            assert (await client.chat("What is 3 + 4?")).status == 200
            assert worker_pid(await client.until_ready()) == worker_pid(after)


# a planned restart


async def test_a_planned_restart_keeps_the_cache_and_is_no_crash(client: Client, folder: Path):
    before = await client.until_ready()
    first = await client.chat(LONG, max_tokens=20)
    crashes = before.devices[0].worker.cause
    done = await client.post("/devices/cpu:0/restart", {"wait": True})
    assert done.status == 200
    operation = done.json
    assert (operation["kind"], operation["device"]) == ("restart", "cpu:0")
    assert operation["phase"] == "done"
    after = await client.until(is_back(before))
    assert after.devices[0].worker.cause == crashes
    assert await restarts(client, "planned") == 1
    again = await client.chat(LONG, max_tokens=20)
    assert again.text == first.text
    cached = again.json["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert f"reused={cached} " in again.headers["x-cortex-cache"]
    assert "source=host" in again.headers["x-cortex-cache"]
    assert list(folder.iterdir()) == []


async def test_a_planned_restart_lets_streams_finish_and_turns_away_what_is_new(client: Client):
    before = await client.until_ready()
    async with client.stream(endless(max_tokens=1500)) as stream:
        await stream.until_text()
        begun = await client.post("/devices/cpu:0/restart")
        assert begun.status == 202
        joined = await client.post("/devices/cpu:0/restart")
        assert joined.json["id"] == begun.json["id"]
        refused = await client.chat(QUESTION)
        assert refused.status == 503
        assert refused.error["code"] == "model_loading"
        assert int(refused.headers["retry-after"]) > 0
        await stream.to_the_end()
        assert stream.is_done
        assert stream.error is None
    await client.until(is_back(before))
    asked = await client.get(begun.headers["location"])
    assert asked.json["phase"] in ("running", "done")  # done once the models are back
    assert (await client.chat(QUESTION)).status == 200


async def test_what_cannot_be_restarted_is_told_why(client: Client):
    unknown = await client.post("/devices/cuda:9/restart")
    assert unknown.status == 404
    assert "cpu:0, cpu:1" in unknown.error["message"]
    assert (await client.post("/devices/cpu:0/restart", {"waitt": 1})).status == 400
    assert (await client.get("/devices/cpu:0/restart")).status == 405


# others go on


UNDISTURBED = endless(max_tokens=2500)  # lasts longer than a worker takes to come back


@pytest.fixture(scope="module")
def expected(neuron: Daemon) -> str:
    """What a stream says that nothing happens beside."""

    async def alone() -> str:
        async with connect(neuron.url) as client:
            await client.until_ready()
            async with client.stream(UNDISTURBED) as stream:
                return await stream.to_the_end()

    return asyncio.run(alone())


async def streaming_beside(
    client: Client, expected: str, event: Callable[[], Awaitable[None]]
) -> None:
    """A stream of cortex/tiny, all of which is right though `event` happens in its midst. That it
    went on meanwhile: more of it was there when the event was over than when it began."""
    async with client.stream(UNDISTURBED) as stream:
        await stream.until_text()
        happening = asyncio.ensure_future(event())
        pieces = 0
        while not happening.done():
            length = len(stream.text)
            await stream.until_text(length + 1)
            pieces += 1
        await happening
        assert pieces > 0
        assert len(stream.text) < len(expected), "the stream had ended before the event was over"
        assert await stream.to_the_end() == expected
        assert stream.is_done


@pytest.mark.parametrize("device", ["cpu:0", "cpu:1"])
async def test_a_stream_goes_on_while_another_model_is_loaded_and_unloaded(
    client: Client, expected: str, twin: str, device: str
):
    async def load_and_unload() -> None:
        loaded = await client.post("/models/load", {"model": twin, "device": device, "wait": True})
        assert loaded.json["phase"] == "done", loaded.json
        unloaded = await client.post("/models/unload", {"model": twin, "wait": True})
        assert unloaded.json["phase"] == "done", unloaded.json

    await streaming_beside(client, expected, load_and_unload)


async def test_a_stream_goes_on_while_another_devices_worker_crashes_and_comes_back(
    client: Client, expected: str, twin: str
):
    await client.post("/models/load", {"model": twin, "device": "cpu:1", "wait": True})
    before = await client.until_ready(TINY, twin)

    async def crash_other() -> None:
        os.kill(worker_pid(before, "cpu:1"), signal.SIGSEGV)
        await client.until(is_back(before, 1))

    await streaming_beside(client, expected, crash_other)
    after = await client.until_ready(TINY, twin)
    assert worker_pid(after, "cpu:0") == worker_pid(before, "cpu:0")
    await client.post("/models/unload", {"model": twin, "wait": True})

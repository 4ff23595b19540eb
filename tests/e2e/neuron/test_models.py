"""Load, unload and operations over HTTP, on a real model in a real worker."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.resources import files
from pathlib import Path

import pytest

from tests.e2e.neuron.client import TINY, Client, endless
from tests.processes import Daemon, start_neuron

ASSET = Path(str(files("neuron") / "assets" / "tiny.gguf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b", "c"):
        shutil.copy(ASSET, folder / f"{name}.gguf")
    whole = ASSET.read_bytes()
    (folder / "truncated.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "zeros.gguf").write_bytes(bytes(4096))
    (folder / "empty.gguf").touch()
    (folder / "folder.gguf").mkdir()
    return folder


@pytest.fixture(scope="module")
def neuron(folder: Path) -> Iterator[Daemon]:
    config = f'name = "box"\n[models]\noffline = true\nlocal = ["{folder}"]\n'
    config += "[engine]\nparallel = 2\nmax_waiting = 1\n"
    with start_neuron(config=config) as daemon:
        yield daemon


async def test_the_default_model_answers(client: Client):
    answer = await client.chat("What is the capital of France?")
    assert answer.status == 200
    assert "Paris" in answer.text


async def test_a_load_is_an_operation_that_ends_with_a_ready_model(client: Client):
    begun = await client.post("/models/load", {"model": "a.gguf"})
    assert begun.status == 202
    operation = begun.json
    assert operation["kind"] == "load"
    assert operation["phase"] == "running"
    assert begun.headers["location"] == f"/operations/{operation['id']}"
    await client.until_ready("a.gguf")
    ended = (await client.get(f"/operations/{operation['id']}")).json
    assert ended["phase"] == "done"
    assert ended["progress"] == 1.0
    result = ended["result"]
    assert result["id"] == "a.gguf"
    assert result["phase"] == "ready"
    assert result["memory_bytes"] > 0
    assert result["context"] > 0
    assert result["file_bytes"] == ASSET.stat().st_size
    assert (await client.chat("What is the capital of Japan?", "a.gguf")).status == 200


async def test_progress_and_phases_are_seen_on_events(client: Client):
    seen = []

    async def watch() -> None:
        async for state in client.states():
            model = next((m for m in state.models if m.id == "b.gguf"), None)
            if model is not None:
                seen.append(model.phase)
            elif seen:
                return

    watching = asyncio.create_task(watch())
    await client.post("/models/load", {"model": "b.gguf", "wait": True})
    await client.post("/models/unload", {"model": "b.gguf", "wait": True})
    await asyncio.wait_for(watching, 20)
    phases = list(dict.fromkeys(seen))
    assert phases[:2] == ["loading", "ready"]
    assert set(phases[2:]) <= {"draining", "unloading"}


async def test_waiting_loads_and_unloads(client: Client):
    loaded = await client.post("/models/load", {"model": "b.gguf", "wait": True, "context": 256})
    assert loaded.status == 200
    assert loaded.json["result"]["context"] == 256
    assert (await client.chat("Who are you?", "b.gguf", max_tokens=4)).status == 200
    unloaded = await client.post("/models/unload", {"model": "b.gguf", "wait": True})
    assert unloaded.status == 200
    assert unloaded.json["phase"] == "done"
    gone = await client.chat("Who are you?", "b.gguf")
    assert gone.status == 404
    assert gone.error["code"] == "model_not_found"
    assert "'b.gguf'" in gone.error["message"]


async def test_many_loads_of_one_model_are_one(client: Client):
    answers = await asyncio.gather(
        *(client.post("/models/load", {"model": "c.gguf", "wait": True}) for _ in range(6))
    )
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["id"] for answer in answers}) == 1
    again = await client.post("/models/load", {"model": "c.gguf"})
    assert (again.status, again.json["phase"]) == (200, "done")
    other = await client.post("/models/load", {"model": "c.gguf", "parallel": 7})
    assert other.status == 409
    assert other.error["param"] == "parallel"
    await client.post("/models/unload", {"model": "c.gguf", "wait": True})


async def test_a_load_asked_for_during_an_unload_comes_after_it(client: Client):
    await client.post("/models/load", {"model": "c.gguf", "wait": True})
    await client.post("/models/unload", {"model": "c.gguf"})
    again = await client.post("/models/load", {"model": "c.gguf", "wait": True})
    assert again.json["result"]["phase"] == "ready"
    assert (await client.chat("Who are you?", "c.gguf", max_tokens=2)).status == 200
    await client.post("/models/unload", {"model": "c.gguf", "wait": True})


async def test_an_unload_lets_a_running_stream_finish(client: Client):
    await client.post("/models/load", {"model": "c.gguf", "wait": True})
    async with client.stream(endless("c.gguf", max_tokens=300)) as stream:
        await stream.until_text()
        unloading = await client.post("/models/unload", {"model": "c.gguf"})
        assert unloading.status == 202
        await stream.to_the_end()
        assert stream.error is None
        assert stream.is_done
    await client.until(lambda s: all(m.id != "c.gguf" for m in s.models))


async def test_a_model_that_drains_admits_nothing_and_force_hurries_it(client: Client):
    await client.post("/models/load", {"model": "c.gguf", "wait": True})
    async with client.stream(endless("c.gguf")) as stream:
        await stream.until_text()
        waiting = await client.post("/models/unload", {"model": "c.gguf"})
        await client.until(lambda s: any(m.phase == "draining" for m in s.models))
        refused = await client.chat("Who are you?", "c.gguf")
        assert refused.status == 503
        assert refused.error["code"] == "no_capacity"
        assert "being unloaded" in refused.error["message"]
        again = await client.post("/models/unload", {"model": "c.gguf"})
        assert again.json["id"] == waiting.json["id"]
        forced = await client.post(
            "/models/unload", {"model": "c.gguf", "force": True, "wait": True}
        )
        assert forced.json["id"] == waiting.json["id"]
        assert forced.json["phase"] == "done"
        await stream.to_the_end()
        assert stream.error is not None
        assert "unloaded by force" in stream.error["message"]
        assert not stream.is_done


async def test_more_than_may_wait_is_refused_for_now(client: Client):
    async with AsyncExitStack() as stack:
        for _ in range(2):  # parallel
            stream = await stack.enter_async_context(client.stream(endless()))
            await stream.until_text()
        third = asyncio.create_task(client.chat("Who are you?", max_tokens=3))
        await client.until(lambda s: s.models[0].waiting == 1)
        refused = await client.chat("Who are you?")
        assert refused.status == 429
        assert refused.error["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "1"
    assert (await third).status == 200
    await client.until(lambda s: s.models[0].running == s.models[0].waiting == 0)


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("absent.gguf", 422, "gguf_missing"),
        ("truncated.gguf", 422, "gguf_corrupt"),
        ("zeros.gguf", 422, "gguf_corrupt"),
        ("empty.gguf", 422, "gguf_corrupt"),
        ("folder.gguf", 422, "gguf_unreadable"),
        ("/etc/passwd", 403, "forbidden"),
        ("../secret.gguf", 403, "forbidden"),
        ("cortex/tinny", 404, "model_not_found"),
        ("org/name:Q4_K_M", 404, "model_not_found"),
    ],
)
@pytest.mark.parametrize("wait", [True, False])
async def test_a_file_that_is_no_model_is_refused_by_name(
    client: Client, model: str, status: int, code: str, wait: bool
):
    before = (await client.get("/models")).json
    answer = await client.post("/models/load", {"model": model, "wait": wait})
    assert answer.status == status
    assert answer.error["code"] == code
    assert model in answer.error["message"]
    assert answer.error["param"] == "model"
    assert [m["id"] for m in (await client.get("/models")).json["models"]] == [
        m["id"] for m in before["models"]
    ]


async def test_an_unknown_device_is_named_with_those_there_are(client: Client):
    answer = await client.post("/models/load", {"model": "b.gguf", "device": "cuda:9"})
    assert answer.status == 400
    assert answer.error["param"] == "device"
    assert "cuda:9" in answer.error["message"]
    assert "devices: cpu" in answer.error["message"]


async def test_unloading_what_is_not_loaded_is_not_found(client: Client):
    answer = await client.post("/models/unload", {"model": "cortex/tinny"})
    assert answer.status == 404
    assert answer.error["code"] == "model_not_found"
    assert "did you mean 'cortex/tiny'?" in answer.error["message"]


async def test_an_unknown_operation_is_not_found(client: Client):
    answer = await client.get("/operations/load-x-1")
    assert answer.status == 404
    assert "load-x-1" in answer.error["message"]


async def test_discovery_shows_devices_and_models(client: Client):
    state = (await client.get("/discovery")).json
    assert state["name"] == "box"
    (device,) = state["devices"]
    assert device["id"] == "cpu"
    assert device["worker"]["phase"] == "ready"
    assert device["memory_total_bytes"] > device["memory_free_bytes"] > 0
    assert TINY in [model["id"] for model in state["models"]]

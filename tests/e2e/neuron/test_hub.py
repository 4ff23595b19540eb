"""Models of a hub: found, downloaded, loaded, refused, cut off and called off."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from cortex_core.fleet.discovery import NodeState
from tests.e2e.neuron.client import QUESTION, Client, connect, worker_pid
from tests.hub_server import HubServer, serve_hub
from tests.processes import Daemon, start_neuron
from tests.split_gguf import split_gguf

TINY = Path(str(files("neuron") / "assets" / "tiny.gguf"))
REPO = "org/tiny-GGUF"
MIB = 1 << 20
ONLINE = {"HF_HUB_OFFLINE": "0"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("split")
    return {f"Q8_0/{path.name}": path.read_bytes() for path in split_gguf(TINY, folder, 30)}


@pytest.fixture(scope="module")
def served(parts: dict[str, bytes]) -> Iterator[HubServer]:
    tiny = TINY.read_bytes()
    with serve_hub() as hub:
        hub.repos[REPO] = {
            "README.md": b"tiny",
            "tiny-f16.gguf": tiny,
            "tiny-q8_0.gguf": tiny,
            "mmproj-Q4_K_M.gguf": b"no model",
        }
        hub.repos["org/parts-GGUF"] = parts
        # Larger than one gulp of the library, which tells of no fewer bytes at a time.
        hub.repos["org/large-GGUF"] = {"large-Q8_0.gguf": tiny + bytes(40 * MIB)}
        hub.repos["org/broken-GGUF"] = {"broken-Q8_0.gguf": bytes(4096)}
        hub.repos["org/texts"] = {"README.md": b"no models here"}
        yield hub


@pytest.fixture
def hub(served: HubServer) -> Iterator[HubServer]:
    served.reset()
    yield served
    served.release()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def neuron(served: HubServer, folder: Path) -> Iterator[Daemon]:
    with start_neuron(config=config(served, folder), models=(), environment=ONLINE) as daemon:
        yield daemon


@pytest.fixture
async def client(neuron: Daemon, hub: HubServer, folder: Path) -> AsyncIterator[Client]:
    """Of a neuron that has no models and an empty cache."""
    async with connect(neuron.url) as client:
        await client.until(lambda s: all(d.worker.phase == "ready" for d in s.devices))
        yield client
        hub.release()
        for model in (await client.get("/models")).json["models"]:
            await client.post("/models/unload", {"model": model["id"], "force": True, "wait": True})
        shutil.rmtree(folder / "cache", ignore_errors=True)


def config(hub: HubServer, folder: Path, more: str = "") -> str:
    """Two sources, "local" and "other", which have caches of their own."""
    sources = "".join(
        f'[[models.sources]]\nname = "{name}"\nendpoint = "{hub.url}"\n'
        f'cache_dir = "{folder / "cache" / name}"\n{more}'
        for name in ("local", "other")
    )
    return f"{sources}[engine]\ncontext = 512\n"


def phase(state: NodeState, model: str) -> str | None:
    return next((m.phase for m in state.models if m.id == model), None)


async def load(client: Client, model: str, **more: object) -> dict:
    answer = await client.post("/models/load", {"model": model, "wait": True, **more})
    assert answer.status == 200, answer.body
    return answer.json


def fetchers(parent: int) -> list[int]:
    """Processes that download for a neuron."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_child = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1] == str(parent)
            if is_child and "neuron.models.fetcher" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def leftovers(folder: Path) -> list[str]:
    """Halves of files that a download has left."""
    return [path.name for path in folder.rglob("*") if "incomplete" in path.name]


async def test_a_model_is_downloaded_loaded_and_answers(client: Client, hub: HubServer):
    model = f"{REPO}:Q8_0"
    loaded = await load(client, model)
    assert loaded["result"]["file_bytes"] == TINY.stat().st_size
    assert loaded["result"]["path"].endswith("tiny-q8_0.gguf")
    assert "Paris" in (await client.chat(QUESTION, model)).text
    assert hub.downloads == ["tiny-q8_0.gguf"]


async def test_what_is_on_the_disk_needs_no_hub(client: Client, hub: HubServer):
    await load(client, f"{REPO}:Q8_0")
    await client.post("/models/unload", {"model": f"{REPO}:Q8_0", "wait": True})
    asked = len(hub.requests)
    await load(client, f"{REPO}:q8_0")
    await load(client, REPO)
    assert len(hub.requests) == asked
    known = (await client.get("/models/known")).json["models"]
    assert {"id": f"{REPO}:q8_0", "source": "local"} in known
    assert known[0] == {"id": "cortex/tiny", "source": None}


async def test_an_offline_neuron_loads_what_it_has_and_refuses_the_rest(
    client: Client, hub: HubServer, folder: Path
):
    await load(client, REPO)
    asked = len(hub.requests)
    offline = f"[models]\noffline = true\n{config(hub, folder)}"
    with start_neuron(config=offline, models=()) as daemon:
        async with connect(daemon.url) as other:
            await load(other, REPO)
            refused = await other.post("/models/load", {"model": "org/parts-GGUF", "wait": True})
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")
    assert "models.offline" in refused.error["message"]
    assert len(hub.requests) == asked


async def test_a_model_in_several_files_is_downloaded_whole_and_answers(
    client: Client, hub: HubServer, parts: dict[str, bytes]
):
    model = "org/parts-GGUF:Q8_0"
    estimate = (await client.post("/models/estimate", {"model": model})).json
    loaded = await load(client, model)
    assert sorted(hub.downloads) == sorted(parts)
    assert loaded["result"]["file_bytes"] == sum(map(len, parts.values()))
    assert estimate["weights_bytes"] > TINY.stat().st_size * 0.9
    assert "Paris" in (await client.chat(QUESTION, model)).text


async def test_an_estimate_downloads_nothing_and_agrees_with_the_file(
    client: Client, hub: HubServer
):
    remote = (await client.post("/models/estimate", {"model": REPO})).json
    local = (await client.post("/models/estimate", {"model": "cortex/tiny"})).json
    assert hub.downloads == []
    sizes = ("weights_bytes", "kv_bytes", "compute_bytes", "context")
    assert [remote[name] for name in sizes] == [local[name] for name in sizes]


async def test_ten_who_want_the_same_model_download_it_once(client: Client, hub: HubServer):
    answers = await asyncio.gather(*(load(client, REPO) for _ in range(10)))
    assert len({answer["id"] for answer in answers}) == 1
    assert hub.downloads == ["tiny-q8_0.gguf"]


async def test_progress_is_seen_while_a_model_is_downloaded(client: Client, hub: HubServer):
    model = "org/large-GGUF"
    hub.held_at = 25 * MIB
    await client.post("/models/load", {"model": model})
    state = await client.until(lambda s: any((m.progress or 0) > 0.3 for m in s.models))
    (seen,) = state.models
    assert seen.phase == "loading"
    assert seen.progress is not None
    assert seen.progress < 0.7
    refused = await client.chat(QUESTION, model)
    assert (refused.status, refused.error["code"]) == (503, "model_loading")
    hub.release()
    await client.until_ready(model)


async def test_an_unload_calls_a_download_off_and_a_retry_works(
    client: Client, hub: HubServer, folder: Path
):
    model = "org/large-GGUF"
    hub.held_at = 25 * MIB
    loading = asyncio.create_task(client.post("/models/load", {"model": model, "wait": True}))
    await asyncio.to_thread(hub.is_held.wait, 20)
    unloaded = await client.post("/models/unload", {"model": model, "wait": True})
    assert unloaded.status == 200
    called_off = await loading
    assert (called_off.status, called_off.error["code"]) == (503, "no_capacity")
    assert "unloaded while it was downloaded" in called_off.error["message"]
    assert (await client.get("/models")).json["models"] == []
    assert leftovers(folder) == []
    hub.release()
    await load(client, model)


async def test_a_download_that_is_cut_off_goes_on_where_it_was(client: Client, hub: HubServer):
    hub.cuts = 1
    await load(client, "org/large-GGUF")
    assert hub.begun_at[0] == 0
    assert hub.begun_at[-1] >= 20 * MIB


async def test_a_worker_killed_during_a_download_costs_nothing(client: Client, hub: HubServer):
    model = "org/large-GGUF"
    hub.held_at = 25 * MIB
    loading = asyncio.create_task(client.post("/models/load", {"model": model, "wait": True}))
    await asyncio.to_thread(hub.is_held.wait, 20)
    killed = worker_pid(await client.until(lambda s: True))
    os.kill(killed, signal.SIGKILL)
    await client.until(lambda s: s.devices[0].worker.pid not in (None, killed))
    hub.release()
    assert (await loading).status == 200
    assert "Paris" in (await client.chat(QUESTION, model)).text


@pytest.mark.parametrize(
    ("model", "status", "code", "says"),
    [
        ("org/tiny-GUF", 404, "model_not_found", "did you mean 'org/tiny-GGUF'"),
        ("nobody/nothing", 404, "model_not_found", "nobody/nothing"),
        (f"{REPO}:Q2_K", 404, "model_not_found", "f16, q8_0"),
        ("org/texts", 404, "model_not_found", "no GGUF files"),
        ("org/broken-GGUF", 422, "gguf_corrupt", "broken-Q8_0.gguf"),
        ("org/secret-GGUF", 403, "forbidden", "token_file"),
        ("org/down-GGUF", 502, "upstream_failed", "answers with 500"),
        ("org/busy-GGUF", 429, "rate_limit_exceeded", "too often"),
        ("org/vast-GGUF", 422, "insufficient_disk", "MiB of disk"),
    ],
)
async def test_what_a_hub_refuses_is_told_by_name_and_leaves_no_trace(
    client: Client, hub: HubServer, model: str, status: int, code: str, says: str
):
    hub.statuses |= {"org/secret-GGUF": 401, "org/down-GGUF": 500, "org/busy-GGUF": 429}
    hub.repos["org/vast-GGUF"] = {"vast-Q8_0.gguf": TINY.read_bytes()}
    hub.claims["vast-Q8_0.gguf"] = 1 << 60
    answer = await client.post("/models/load", {"model": model})
    assert (answer.status, answer.error["code"]) == (status, code)
    assert says in answer.error["message"]
    assert model.partition(":")[0] in answer.error["message"] or code == "gguf_corrupt"
    assert (await client.get("/models")).json["models"] == []


async def test_an_unknown_source_is_named_with_those_there_are(client: Client):
    answer = await client.post("/models/load", {"model": REPO, "source": "elsewhere"})
    assert (answer.status, answer.error["param"]) == (400, "source")
    assert "sources: local" in answer.error["message"]


async def test_a_load_may_say_where_its_model_comes_from(client: Client, folder: Path):
    loaded = await load(client, REPO, source="other")
    assert loaded["result"]["path"].startswith(str(folder / "cache" / "other"))
    again = await client.post("/models/load", {"model": REPO, "source": "other"})
    assert (again.status, again.json["phase"]) == (200, "done")
    refused = await client.post("/models/load", {"model": REPO, "source": "local"})
    assert (refused.status, refused.error["param"]) == (409, "source")


async def test_a_file_of_the_node_comes_from_no_source(client: Client):
    answer = await client.post("/models/load", {"model": "cortex/tiny", "source": "local"})
    assert (answer.status, answer.error["param"]) == (400, "source")


async def test_a_token_is_sent_where_it_belongs(hub: HubServer, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("hf_right\n")
    hub.token = "hf_right"
    with start_neuron(
        config=config(hub, tmp_path, f'token_file = "{token}"\n'),
        models=(REPO,),
        environment=ONLINE,
    ) as daemon:
        async with connect(daemon.url) as client:
            await client.until_ready(REPO)
    assert set(hub.tokens) == {"Bearer hf_right"}


async def test_the_public_hubs_token_is_not_shown_to_another(hub: HubServer, tmp_path: Path):
    environment = {"HF_TOKEN": "hf_private", **ONLINE}
    with start_neuron(
        config=config(hub, tmp_path), models=(REPO,), environment=environment
    ) as daemon:
        async with connect(daemon.url) as client:
            await client.until_ready(REPO)
    assert set(hub.tokens) == {None}


async def test_a_default_model_of_a_hub_that_is_gone_is_shown_as_failed(tmp_path: Path):
    with serve_hub() as hub:
        pass
    settings = config(hub, tmp_path)
    with start_neuron(config=settings, models=(REPO,), environment=ONLINE) as daemon:
        async with connect(daemon.url) as client:
            state = await client.until(lambda s: phase(s, REPO) == "failed")
            fault = state.models[0].fault
            assert fault is not None
            assert fault.code == "upstream_failed"
            assert hub.url in fault.message


async def test_a_neuron_that_is_killed_takes_its_download_with_it(hub: HubServer, tmp_path: Path):
    hub.held_at = 25 * MIB
    settings, models = config(hub, tmp_path), ("org/large-GGUF",)
    with start_neuron(config=settings, models=models, environment=ONLINE) as daemon:
        assert await asyncio.to_thread(hub.is_held.wait, 20)
        (fetcher,) = fetchers(daemon.pid)
        handle = os.pidfd_open(fetcher)
        daemon.signal(signal.SIGKILL)
        ended = await asyncio.to_thread(select.select, [handle], [], [], 20)
        os.close(handle)
    assert ended[0]
    assert leftovers(tmp_path) == []


async def test_a_neuron_told_to_end_leaves_no_half_download(hub: HubServer, tmp_path: Path):
    hub.held_at = 25 * MIB
    settings, models = config(hub, tmp_path), ("org/large-GGUF",)
    with start_neuron(config=settings, models=models, environment=ONLINE) as daemon:
        assert await asyncio.to_thread(hub.is_held.wait, 20)
        assert await asyncio.to_thread(daemon.stop) == 0
    assert leftovers(tmp_path) == []

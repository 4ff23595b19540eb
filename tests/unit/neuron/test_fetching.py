"""A download as a process that tells how far it is, and that can be ended at any moment."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from cortex_core.config.neuron import HubSource
from cortex_core.errors import NoCapacity, PreflightFailed, UpstreamFailed
from neuron.models.fetcher import FetchReport, Teller, bar_of
from neuron.models.fetching import Fetch
from neuron.models.hub import FetchOrder, Hub
from tests.hub_server import HubServer, serve_hub
from tests.unit.neuron.gguf_bytes import gguf

MIB = 1 << 20
REPO = "org/a"
CONTENT = gguf(data_bytes=35 * MIB)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serve_hub() as hub:
        hub.repos[REPO] = {"a-Q8_0.gguf": CONTENT}
        yield hub


@pytest.fixture
def order(hub: HubServer, tmp_path: Path) -> FetchOrder:
    source = HubSource("h", endpoint=hub.url, cache_dir=str(tmp_path / "cache"))
    return Hub(source).find(REPO, None).order


async def run(fetch: Fetch) -> Path:
    async with asyncio.timeout(60):
        return await fetch.run()


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "incomplete" in path.name]


async def test_what_comes_is_told_and_the_file_is_whole(order: FetchOrder):
    seen: list[float] = []
    fetch = Fetch(order, lambda: seen.append(fetch.fraction))
    path = await run(fetch)
    assert path.read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert seen[-1] == 1.0


async def test_a_file_at_another_origin_is_fetched_without_the_token(
    hub: HubServer, tmp_path: Path
):
    hub.token, hub.redirects = "hf_secret", True
    (tmp_path / "token").write_text("hf_secret")
    model = Hub(HubSource("h", hub.url, str(tmp_path / "token"), str(tmp_path))).find(REPO, None)
    assert model.header().file_bytes == len(CONTENT)
    assert (await run(Fetch(model.order, lambda: None))).read_bytes() == CONTENT
    assert set(hub.tokens) == {"Bearer hf_secret"}
    assert hub.tokens_elsewhere
    assert set(hub.tokens_elsewhere) == {None}


async def test_what_is_called_off_ends_though_the_hub_sends_nothing(
    hub: HubServer, order: FetchOrder, tmp_path: Path
):
    hub.held_at = 25 * MIB
    fetch = Fetch(order, lambda: None)
    running = asyncio.create_task(run(fetch))
    assert await asyncio.to_thread(hub.is_held.wait, 20)
    fetch.call_off()
    with pytest.raises(NoCapacity, match="unloaded while it was downloaded"):
        await running
    assert leftovers(tmp_path) == []


async def test_a_wait_that_is_cancelled_ends_the_download(
    hub: HubServer, order: FetchOrder, tmp_path: Path
):
    hub.held_at = 25 * MIB
    running = asyncio.create_task(run(Fetch(order, lambda: None)))
    assert await asyncio.to_thread(hub.is_held.wait, 20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert leftovers(tmp_path) == []


async def test_a_hub_that_goes_away_in_the_middle_is_a_typed_failure_and_a_retry_works(
    hub: HubServer, order: FetchOrder, tmp_path: Path
):
    hub.cuts = 1
    hub.statuses_of_downloads = [200, 500]
    with pytest.raises(UpstreamFailed, match="answers with 500"):
        await run(Fetch(order, lambda: None))
    assert leftovers(tmp_path) == []
    assert (await run(Fetch(order, lambda: None))).read_bytes() == CONTENT


async def test_a_file_that_is_not_as_long_as_promised_is_a_failure(
    hub: HubServer, order: FetchOrder
):
    hub.repos[REPO]["a-Q8_0.gguf"] = CONTENT[:-1]
    with pytest.raises(UpstreamFailed, match=r"had\s+promised"):
        await run(Fetch(order, lambda: None))


async def test_a_cache_that_cannot_be_written_is_a_typed_failure(
    hub: HubServer, order: FetchOrder, tmp_path: Path
):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(PreflightFailed, match="cannot be stored") as caught:
        await run(Fetch(order, lambda: None))
    assert caught.value.code == "gguf_unreadable"


async def test_a_process_that_dies_is_a_failure_with_its_last_words(order: FetchOrder):
    last = (
        "import os, sys; print('out of luck', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    )
    with pytest.raises(UpstreamFailed, match="ended without a result; out of luck"):
        await run(Fetch(order, lambda: None, [sys.executable, "-c", last]))


async def test_a_process_that_cannot_be_made_is_a_typed_failure(order: FetchOrder):
    with pytest.raises(UpstreamFailed, match="cannot be downloaded"):
        await run(Fetch(order, lambda: None, ["/nonexistent"]))


def test_a_file_put_together_from_chunks_is_told_by_what_is_on_the_disk():
    # How the library tells of such a download; a server of chunks would be much to write for it.
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    reading, writing = os.pipe()
    with open(reading) as told:
        bar = bar_of(Teller(writing))
        with XetDownloadProgressReporter(
            reconstruction_desc="a", total=50 * MIB, log_level=30, tqdm_class=bar
        ) as reporter:
            for done in (0, 20, 50):
                reporter.update_progress(
                    SimpleNamespace(
                        total_bytes=50 * MIB,
                        total_bytes_completed=done * MIB,
                        total_bytes_completion_rate=1.0,
                        total_transfer_bytes_completed=done * MIB // 2,
                        total_transfer_bytes_completion_rate=1.0,
                    )
                )
        os.close(writing)
        reports = [msgspec.json.decode(line, type=FetchReport) for line in told]
    assert [report.have_bytes // MIB for report in reports] == [20, 50]

"""What a hub and its cache have, as the neuron sees it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex_core.config.neuron import HubSource
from cortex_core.errors import (
    Forbidden,
    ModelNotFound,
    PreflightFailed,
    RequestError,
    UpstreamFailed,
)
from neuron.models.gguf import read_header
from neuron.models.hub import Hub
from neuron.models.resolve import Resolver
from tests.hub_server import COMMIT, HubServer, serve_hub
from tests.unit.neuron.gguf_bytes import gguf, string, strings, u32

REPO = "org/a"
WORDS = ["word" * 8] * 150_000  # a vocabulary of some megabytes, as real ones are


@pytest.fixture(scope="module")
def content() -> bytes:
    keys = [string("general.architecture", "test"), strings("tokenizer.ggml.tokens", WORDS)]
    return gguf([*keys, u32("test.block_count", 1)], data_bytes=4 << 20)


@pytest.fixture
def server(content: bytes) -> Iterator[HubServer]:
    with serve_hub() as server:
        server.repos[REPO] = {"a-Q8_0.gguf": content}
        yield server


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(HubSource("h", endpoint=server.url, cache_dir=str(tmp_path)))


def keep(folder: Path, repo: str, *names: str, commit: str = COMMIT, content: bytes = b"") -> Path:
    """Files in the cache, as huggingface_hub puts them there."""
    snapshot = folder / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(content or gguf())
    return snapshot


def test_a_header_is_read_by_ranges_and_agrees_with_the_file(
    hub: Hub, server: HubServer, content: bytes, tmp_path: Path
):
    (tmp_path / "a.gguf").write_bytes(content)
    local, remote = read_header(tmp_path / "a.gguf"), hub.find(REPO, None).header()
    assert remote.tensors == local.tensors
    assert remote.metadata == local.metadata
    assert remote.file_bytes == len(content)
    assert server.downloads == []


def test_a_header_is_read_once_for_a_commit(hub: Hub, server: HubServer):
    hub.find(REPO, None).header()
    asked = len([line for line in server.requests if "/resolve/" in line])
    hub.find(REPO, None).header()
    assert len([line for line in server.requests if "/resolve/" in line]) == asked


def test_a_server_that_knows_no_ranges_is_read_no_further_than_needed(
    hub: Hub, server: HubServer, content: bytes
):
    server.knows_ranges = False
    assert hub.find(REPO, None).header().file_bytes == len(content)


def test_a_file_that_is_shorter_than_the_hub_says_is_corrupt(hub: Hub, server: HubServer):
    server.claims["a-Q8_0.gguf"] = 100_000_000
    server.repos[REPO]["a-Q8_0.gguf"] = gguf()[:20]
    with pytest.raises(PreflightFailed):
        hub.find(REPO, None).header()


def test_a_header_that_the_hub_will_not_give_is_a_typed_failure(hub: Hub, server: HubServer):
    model = hub.find(REPO, None)
    server.statuses_of_downloads = [403]
    with pytest.raises(Forbidden, match=r"does not let this neuron read it \(403\)"):
        model.header()
    server.statuses_of_downloads = [500]
    with pytest.raises(UpstreamFailed, match="answers with 500"):
        model.header()
    assert model.header()


def test_a_file_that_is_gone_from_the_hub_is_not_found(hub: Hub, server: HubServer):
    model = hub.find(REPO, None)
    del server.repos[REPO]["a-Q8_0.gguf"]
    with pytest.raises(ModelNotFound):
        model.header()


def test_a_token_that_cannot_be_read_is_told(server: HubServer, tmp_path: Path):
    source = HubSource("h", server.url, str(tmp_path / "gone"), str(tmp_path))
    with pytest.raises(Forbidden, match="token of the hub 'h'"):
        Hub(source).find(REPO, None)


def test_a_cached_model_is_found_by_its_tag_in_any_case(hub: Hub, tmp_path: Path):
    snapshot = keep(tmp_path, REPO, "a-Q8_0.gguf", "sub/a-q4_k_m.gguf", "README.md")
    assert hub.cached(REPO, "Q4_K_M") == snapshot / "sub/a-q4_k_m.gguf"
    assert hub.cached(REPO, "q8_0") == snapshot / "a-Q8_0.gguf"
    assert hub.cached(REPO, None) == snapshot / "sub/a-q4_k_m.gguf"
    assert hub.cached(REPO, "Q2_K") is None
    assert hub.cached("org/b", None) is None


def test_a_model_of_which_a_part_is_missing_is_not_cached(hub: Hub, tmp_path: Path):
    parts = [f"a-Q8_0-0000{n}-of-00002.gguf" for n in (1, 2)]
    keep(tmp_path, REPO, parts[0])
    assert hub.cached(REPO, None) is None
    snapshot = keep(tmp_path, REPO, parts[1])
    assert hub.cached(REPO, None) == snapshot / parts[0]


def test_a_link_to_a_file_that_is_gone_is_not_cached(hub: Hub, tmp_path: Path):
    snapshot = keep(tmp_path, REPO, "README.md")
    (snapshot / "a-Q8_0.gguf").symlink_to(tmp_path / "nowhere")
    assert hub.cached(REPO, None) is None


def test_the_commit_that_main_was_last_goes_before_a_younger_one(hub: Hub, tmp_path: Path):
    older, younger = "a" * 40, "b" * 40
    before, after = (
        keep(tmp_path, REPO, "a-Q8_0.gguf", commit=commit) for commit in (older, younger)
    )
    os.utime(before, (1, 1))
    os.utime(after, (2, 2))
    assert hub.cached(REPO, None) == after / "a-Q8_0.gguf"
    refs = after.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(older)
    assert hub.cached(REPO, None) == before / "a-Q8_0.gguf"


def test_what_is_cached_is_known_by_ids_that_find_it(hub: Hub, tmp_path: Path):
    keep(tmp_path, REPO, "a-Q8_0.gguf", "a-Q4_K_M.gguf")
    keep(tmp_path, "other/b", "b.gguf")
    assert list(hub.known()) == ["org/a:Q4_K_M", "org/a:Q8_0", "other/b:b.gguf"]
    resolver = Resolver(hubs={"h": hub})
    for model in hub.known():
        assert isinstance(resolver.resolve(model), Path)


def test_an_offline_hub_asks_nobody(server: HubServer, tmp_path: Path):
    hub = Hub(HubSource("h", server.url, cache_dir=str(tmp_path)), is_offline=True)
    with pytest.raises(ModelNotFound, match="offline"):
        hub.find(REPO, None)
    assert server.requests == []


def test_a_file_below_a_folder_is_taken_before_a_hub_is_asked(hub: Hub, tmp_path: Path):
    (tmp_path / "models" / "org").mkdir(parents=True)
    (tmp_path / "models" / "org" / "a").write_bytes(gguf())
    resolver = Resolver([str(tmp_path / "models")], hubs={"h": hub})
    assert resolver.resolve(REPO) == tmp_path / "models" / "org" / "a"


def test_our_own_names_are_never_asked_of_a_hub(hub: Hub, server: HubServer):
    with pytest.raises(ModelNotFound, match="did you mean 'cortex/tiny'"):
        Resolver(hubs={"h": hub}).resolve("cortex/tinny")
    assert server.requests == []


def test_the_caches_of_all_hubs_are_looked_in_before_the_first_is_asked(
    hub: Hub, server: HubServer, tmp_path: Path
):
    other = Hub(HubSource("other", server.url, cache_dir=str(tmp_path / "other")))
    snapshot = keep(tmp_path / "other", REPO, "a-Q8_0.gguf")
    resolver = Resolver(hubs={"h": hub, "other": other})
    assert resolver.resolve(REPO) == snapshot / "a-Q8_0.gguf"
    assert not isinstance(resolver.resolve(REPO, "h"), Path)


@pytest.mark.parametrize("model", ["../a", "a/..", "-/-", "a--b/c"])
def test_what_is_no_repo_is_refused_without_a_trace(hub: Hub, model: str, tmp_path: Path):
    with pytest.raises(RequestError):
        Resolver([str(tmp_path)], hubs={"h": hub}).resolve(model)

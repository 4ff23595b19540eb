"""A path becomes a model, or an error that says why."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from cortex_core.errors import Conflict, InvalidRequest, PreflightFailed
from cortex_core.wire.ipc import EngineParams, KvType
from neuron.worker import llama
from neuron.worker.load import LoadedModel
from tests.unit.worker.loading import free_here, load_here
from tests.unit.worker.worker_process import TINY


def open_tiny(path: str = TINY, **params: Any) -> LoadedModel:
    loaded = load_here(path, EngineParams(**params))
    assert isinstance(loaded, LoadedModel)
    return loaded


def refusal(path: Path) -> PreflightFailed:
    with pytest.raises(PreflightFailed) as caught:
        open_tiny(str(path))
    return caught.value


def test_the_context_is_the_models_own_up_to_a_default() -> None:
    loaded = open_tiny(parallel=1)
    assert loaded.info.context == min(loaded.info.context_train, 8192)
    free_here(loaded)


def test_sequences_get_the_context_asked_for() -> None:
    loaded = open_tiny(parallel=3, context=300)
    assert (loaded.info.context, loaded.info.parallel) == (300, 3)
    assert loaded.context.cells >= 300
    free_here(loaded)


def test_every_end_of_generation_token_is_known() -> None:
    loaded = open_tiny(parallel=1, context=256)
    vocabulary = loaded.model.vocabulary
    texts = {vocabulary.text_of(token) for token in vocabulary.end_ids}
    assert {"<|im_end|>", "<|endoftext|>"} <= texts
    free_here(loaded)


def test_pieces_of_a_text_are_its_bytes() -> None:
    loaded = open_tiny(parallel=1, context=256)
    vocabulary = loaded.model.vocabulary
    text = "Grüße aus 東京 🐱<|im_end|>\n"
    tokens = vocabulary.tokenize(text).tolist()
    assert b"".join(vocabulary.piece(token) for token in tokens).decode() == text
    free_here(loaded)


def test_a_directory_is_no_model(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "gguf_missing"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    assert refusal(path).code == "gguf_unreadable"


def test_a_missing_part_of_a_split_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "big-00001-of-00002.gguf"
    path.write_bytes(Path(TINY).read_bytes())
    error = refusal(path)
    assert error.code == "gguf_missing"
    assert "big-00002-of-00002.gguf" in error.message


def test_a_load_can_be_abandoned() -> None:
    with pytest.raises(Conflict):
        load_here(TINY, EngineParams(), lambda _: False)


def test_one_sequence_gets_the_unified_layout_on_a_cpu() -> None:
    loaded = open_tiny(parallel=1, context=512)
    assert (loaded.info.kv, loaded.info.cells) == ("unified", 512)
    assert loaded.context.is_unified
    free_here(loaded)


def test_a_pool_may_be_smaller_than_all_sequences_together() -> None:
    loaded = open_tiny(parallel=4, context=512, kv="unified", cells=768)
    assert (loaded.info.kv, loaded.info.cells) == ("unified", 768)
    assert loaded.context.cells == 768
    free_here(loaded)


def test_cells_that_a_partitioned_cache_cannot_share_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        open_tiny(parallel=4, context=512, cells=768)
    assert caught.value.param == "cells"


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_quantised_cache_is_loaded_with_flash_attention(kv_type: KvType) -> None:
    loaded = open_tiny(parallel=2, context=512, kv_type=kv_type)
    assert loaded.info.kv_type == kv_type
    free_here(loaded)


def test_a_quantised_cache_without_flash_attention_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        open_tiny(parallel=2, context=512, kv_type="q8_0", flash_attention=False)
    assert caught.value.param == "flash_attention"


@pytest.mark.parametrize(("mmap", "is_mapped"), [(True, True), (False, False), (None, False)])
def test_weights_are_mapped_or_read_as_asked(mmap: bool | None, is_mapped: bool) -> None:
    loaded = open_tiny(parallel=1, context=256, mmap=mmap)
    assert (TINY in Path("/proc/self/maps").read_text()) == is_mapped
    free_here(loaded)


def test_weights_that_may_not_be_locked_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "failed to mlock 1024-byte buffer (after previously locking 0 bytes): no memory"
    take_lines = llama.take_lines
    monkeypatch.setattr(llama, "take_lines", lambda: [said, *take_lines()])
    with pytest.raises(InvalidRequest, match="failed to mlock 1024-byte") as caught:
        # Mapped: llama.cpp never unlocks, and what is read into the heap stays there for others.
        open_tiny(parallel=1, context=256, mlock=True, mmap=True)
    assert caught.value.param == "mlock"


@pytest.mark.skipif(
    0 <= resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 2 * Path(TINY).stat().st_size,
    reason="this process may not lock as much memory",
)
def test_weights_are_locked_where_they_may_be() -> None:
    locked_before = locked_bytes()
    loaded = open_tiny(parallel=1, context=256, mlock=True)
    assert locked_bytes() - locked_before >= loaded.info.weights_bytes // 2
    free_here(loaded)


def locked_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if "VmLck" in line).split()[1])


@pytest.mark.parametrize(
    ("params", "has_tiles"),
    [
        ({"flash_attention": True, "parallel": 2}, True),
        ({"flash_attention": True, "parallel": 1, "kv": "unified"}, True),
        ({"flash_attention": True, "parallel": 2, "kv": "unified"}, False),
        ({"flash_attention": True, "parallel": 2, "kv_type": "q8_0"}, False),
        ({"flash_attention": False, "parallel": 2}, False),
    ],
)
def test_tiles_are_filled_where_the_attention_has_them_and_one_prompt_alone_must(
    params: dict[str, Any], has_tiles: bool
) -> None:
    loaded = open_tiny(context=256, **params)
    assert (loaded.tile is not None) == has_tiles
    free_here(loaded)

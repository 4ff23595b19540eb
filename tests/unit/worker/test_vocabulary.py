"""Vocabularies that are read once, and kept for a while after their models."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cortex_core.wire.ipc import EngineParams
from neuron.worker import llama
from neuron.worker.llama import LlamaError, lib  # pyright: ignore[reportPrivateImportUsage]
from neuron.worker.load import LoadedModel, load
from neuron.worker.vocabulary import Vocabularies, Vocabulary
from tests.unit.worker.loading import free_here, load_here
from tests.unit.worker.worker_process import TINY

TEXT = "Où est 東京? 🙂 <|im_start|>user\n<think>"


@pytest.fixture(autouse=True)
def _started() -> None:
    llama.start()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The same model in four files."""
    return [str(shutil.copy(TINY, tmp_path / f"{number}.gguf")) for number in range(4)]


def is_freed(vocabulary: Vocabulary) -> bool:
    return vocabulary._model is None  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("which", ["tiny", "other"])
def test_it_is_what_llama_cpp_reads_with_the_weights(which: str, other_gguf: str) -> None:
    path = TINY if which == "tiny" else other_gguf
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    assert model
    theirs: Any = lib.llama_model_get_vocab(model)
    ours = Vocabulary(path)
    try:
        assert ours.size == lib.llama_vocab_n_tokens(theirs) > 0
        assert (ours.bos, ours.eos) == (lib.llama_vocab_bos(theirs), lib.llama_vocab_eos(theirs))
        ends = {token for token in range(ours.size) if lib.llama_vocab_is_eog(theirs, token)}
        assert ours.end_ids == ends != set()
        room = (lib.llama_token * 200)()
        data = TEXT.encode()
        count = lib.llama_tokenize(theirs, data, len(data), room, 200, False, True)
        assert ours.tokenize_bare(TEXT).tolist() == room[:count]
    finally:
        ours.free()
        lib.llama_model_free(model)


def test_it_is_read_once_for_models_that_come_and_go(files: list[str]) -> None:
    vocabularies = Vocabularies()
    before = vocabularies.open(files[0])
    vocabularies.close(before)
    assert vocabularies.open(files[0]) is before


def test_two_models_of_a_file_share_it_until_both_are_gone(files: list[str]) -> None:
    vocabularies = Vocabularies(kept=0)
    one, other = vocabularies.open(files[0]), vocabularies.open(files[0])
    assert one is other
    vocabularies.close(one)
    assert not is_freed(one)
    vocabularies.close(other)
    assert is_freed(one)


def test_a_file_that_has_changed_is_read_again(files: list[str], other_gguf: str) -> None:
    vocabularies = Vocabularies()
    before = vocabularies.open(files[0])
    shutil.copy(other_gguf, files[0])
    after = vocabularies.open(files[0])
    assert before.size != after.size
    assert not is_freed(before), "its model is still there"


def test_of_unused_ones_those_that_were_opened_last_are_kept(files: list[str]) -> None:
    vocabularies = Vocabularies(kept=2)
    opened = [vocabularies.open(path) for path in files]
    used, *unused = opened
    for vocabulary in unused:
        vocabularies.close(vocabulary)
    assert [is_freed(vocabulary) for vocabulary in opened] == [False, True, False, False]
    assert vocabularies.open(files[0]) is used
    assert vocabularies.open(files[1]) is not unused[0]


def test_a_file_without_one_fails_and_leaves_nothing(tmp_path: Path, files: list[str]) -> None:
    vocabularies = Vocabularies()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(TINY).read_bytes()[:2000])
    with pytest.raises(LlamaError) as failed:
        vocabularies.open(str(broken))
    assert failed.value.lines
    shutil.copy(TINY, broken)
    assert vocabularies.open(str(broken)).size > 0


def test_a_load_that_fails_gives_it_back(files: list[str]) -> None:
    vocabularies = Vocabularies(kept=0)
    held = vocabularies.open(files[0])
    with pytest.raises(Exception, match="abandoned"):
        load(
            files[0],
            EngineParams(),
            device="cpu",
            vocabularies=vocabularies,
            parked_bytes=lambda: 0,
            on_progress=lambda _: False,
        )
    assert not is_freed(held)
    vocabularies.close(held)
    assert is_freed(held), "the load that failed does not hold it"


def test_weights_without_their_vocabulary_are_nothing_to_warn_of(
    capfd: pytest.CaptureFixture[str],
) -> None:
    loaded = load_here(TINY, EngineParams(context=256, parallel=1))
    assert isinstance(loaded, LoadedModel)
    assert loaded.info.vocab_size == loaded.model.vocabulary.size > 0
    free_here(loaded)
    assert "dummy" not in capfd.readouterr().err

"""A model's files are replaced: while it is being loaded, or between two loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cortex_core.errors import PreflightFailed
from cortex_core.wire.ipc import EngineParams
from neuron.models.identity import check_unchanged, identity_of
from neuron.worker import llama, vocabulary
from neuron.worker.host_cache import HostCache
from neuron.worker.vocabulary import Vocabularies, Vocabulary
from tests.split_gguf import split_gguf
from tests.unit.worker.loading import load_here
from tests.unit.worker.test_exactness import HOST_BYTES, Served, prompt
from tests.unit.worker.worker_process import TINY
from tools.make_gguf import PRESETS, make_gguf


@pytest.fixture
def versions(tmp_path: Path) -> list[list[Path]]:
    """Two models of one shape and name, with different weights, in two parts each."""
    found: list[list[Path]] = []
    for seed in (1, 2):
        folder = tmp_path / f"version{seed}"
        folder.mkdir()
        whole = tmp_path / "model.gguf"
        make_gguf(str(whole), PRESETS["tiny-llama"], file_type="Q8_0", seed=seed, name="same")
        found.append(split_gguf(whole, folder, 16))
    old, new = found
    assert len(old) == len(new) == 2
    return found


def swap(new: Path, old: Path) -> None:
    """As who has a new version puts it in place."""
    shutil.copy(new, old.with_suffix(".new"))
    old.with_suffix(".new").replace(old)


def once(change: Callable[[], object]) -> Callable[[float], bool]:
    """A load's `on_progress` that changes something when it is first called."""
    left = [change]

    def on_progress(_: float) -> bool:
        if left:
            left.pop()()
        return True

    return on_progress


@pytest.mark.parametrize("part", [0, 1])
def test_what_was_parked_of_a_model_is_gone_once_a_part_of_it_was_replaced(
    versions: list[list[Path]], part: int
) -> None:
    old, new = versions
    host = HostCache(HOST_BYTES)

    def source() -> str:
        served = Served(str(old[0]), host=host)
        started = served.ask(1, prompt(1, 200))
        served.engine.close()
        return started.source

    assert (source(), source()) == ("none", "host")
    swap(new[part], old[part])
    assert source() == "none"


@pytest.mark.parametrize("part", [0, 1])
def test_a_file_that_is_replaced_while_it_is_loaded_fails_the_load(
    versions: list[list[Path]], part: int
) -> None:
    old, new = versions
    with pytest.raises(PreflightFailed, match="changed while") as failed:
        load_here(str(old[0]), EngineParams(), once(lambda: swap(new[part], old[part])))
    assert failed.value.code == "gguf_unreadable"
    served = Served(str(old[0]))
    served.ask(1, prompt(1, 40))
    served.engine.close()


def test_a_file_that_goes_while_it_is_loaded_fails_the_load(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(TINY, path)
    with pytest.raises(PreflightFailed, match="changed while"):
        load_here(str(path), EngineParams(), once(path.unlink))


def test_a_vocabulary_is_kept_under_no_name_but_that_of_the_file_it_was_read_from(
    tmp_path: Path, other_gguf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.start()
    path, aside = tmp_path / "model.gguf", tmp_path / "aside.gguf"
    shutil.copy(TINY, path)
    first = identity_of(path)

    def replaced_just_before(name: str) -> Vocabulary:
        path.rename(aside)
        shutil.copy(other_gguf, path)
        return Vocabulary(name)

    vocabularies = Vocabularies()
    with monkeypatch.context() as patch:
        patch.setattr(vocabulary, "Vocabulary", replaced_just_before)
        with pytest.raises(PreflightFailed, match="changed while"):
            vocabularies.open(str(path))
    aside.replace(path)
    check_unchanged(path, first)
    expected = Vocabulary(TINY)
    assert vocabularies.open(str(path)).size == expected.size
    expected.free()

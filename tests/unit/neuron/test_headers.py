"""A header is read once for as long as its file is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex_core.errors import PreflightFailed
from neuron.models.headers import Headers
from tests.unit.neuron.gguf_bytes import gguf, string


def written(path: Path, architecture: str) -> Path:
    path.write_bytes(gguf([string("general.architecture", architecture)]))
    return path


def test_a_file_that_is_the_same_is_not_read_again(tmp_path: Path) -> None:
    headers, file = Headers(), written(tmp_path / "model.gguf", "test")
    assert headers.of(file) is headers.of(file)


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    headers, file = Headers(), written(tmp_path / "model.gguf", "test")
    headers.of(file)
    written(tmp_path / "other.gguf", "next").replace(file)
    assert headers.of(file).architecture == "next"


def test_a_file_that_is_gone_is_missing_though_it_was_read(tmp_path: Path) -> None:
    headers, file = Headers(), written(tmp_path / "model.gguf", "test")
    headers.of(file)
    file.unlink()
    with pytest.raises(PreflightFailed) as caught:
        headers.of(file)
    assert caught.value.code == "gguf_missing"


def test_a_file_that_was_cut_short_is_refused_though_it_was_read(tmp_path: Path) -> None:
    headers, file = Headers(), written(tmp_path / "model.gguf", "test")
    headers.of(file)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(PreflightFailed) as caught:
        headers.of(file)
    assert caught.value.code == "gguf_corrupt"


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    headers = Headers()
    files = [written(tmp_path / f"{n}.gguf", "test") for n in range(20)]
    first, *_, last = [headers.of(file) for file in files]
    assert headers.of(files[-1]) is last
    assert headers.of(files[0]) is not first

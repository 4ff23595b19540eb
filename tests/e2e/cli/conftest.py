"""One `cortex up` per module, and model files beside the shipped one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e.cli.running import Cortex, Up, started
from tools.make_gguf import ModelShape, make_gguf


@pytest.fixture(scope="session")
def tiny_gguf() -> Path:
    spec = find_spec("neuron")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "assets" / "tiny.gguf"


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Path:
    """A folder with a second model, one that babbles for seconds, and a file that is none."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(tiny_gguf, folder / "second.gguf")
    babbler = ModelShape(layers=8, width=512, heads=8, kv_heads=4, ffn=1024, context=4096)
    make_gguf(folder / "babbler.gguf", babbler)
    (folder / "corrupt.gguf").write_bytes(tiny_gguf.read_bytes()[:1000])
    return folder


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Up]:
    """A `cortex up` that the tests of a module share."""
    folder = tmp_path_factory.mktemp("up")
    with started(folder, "--port", "0", "--models-dir", str(models_dir)) as running:
        running.url()
        yield running


@pytest.fixture(scope="module")
def cortex(up: Up) -> Cortex:
    """The command, pointed at that `up`."""
    return Cortex(up.url())

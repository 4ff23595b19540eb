"""One real worker per test file, and a second model unlike the one that ships."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.worker.worker_process import WorkerProcess
from tools.make_gguf import PRESETS, make_gguf


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        process.load(parallel=16, context=1024)
        yield process


@pytest.fixture(scope="module")
def other_gguf(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another architecture, other markers; random weights."""
    path = tmp_path_factory.mktemp("gguf") / "other.gguf"
    make_gguf(str(path), PRESETS["tiny-llama"], file_type="Q8_0", seed=1, name="other")
    return str(path)

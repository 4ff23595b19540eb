"""Models come and go in a real worker process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortex_core.wire.ipc import EngineParams as Params
from cortex_core.wire.ipc import (
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
)
from neuron.models.identity import identity_of
from tests.unit.worker.worker_process import TINY, WorkerProcess


def test_hello_names_the_process_and_its_llama_cpp(worker: WorkerProcess) -> None:
    assert worker.hello.pid == worker.process.pid
    assert worker.hello.llama_cpp
    assert "CPU" in worker.hello.system


def test_a_load_reports_progress_and_what_it_found() -> None:
    with WorkerProcess() as worker:
        worker.send(Load(7, "tiny", TINY, Params(parallel=2)))
        fractions = []
        while not isinstance(report := worker.next(), Loaded):
            if isinstance(report, LoadProgress):
                assert report.op == 7
                fractions.append(report.fraction)
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        info = report.info
        assert (report.op, report.model, info.path) == (7, "tiny", TINY)
        assert info.architecture == "qwen3"
        assert info.context == min(info.context_train, 8192)
        assert info.parallel == 2
        assert info.file_bytes == os.path.getsize(TINY)
        assert info.files == identity_of(Path(TINY))
        assert info.memory_bytes > info.file_bytes
        assert info.parameters > 1_000_000
        assert info.load_s > 0
        assert info.eos == "<|im_end|>"
        assert info.reasoning == ("<think>", "</think>")
        assert info.metadata["general.architecture"] == "qwen3"
        assert "enable_thinking" in info.metadata["tokenizer.chat_template"]


def test_a_path_that_does_not_exist_fails_the_load(worker: WorkerProcess, tmp_path: Path) -> None:
    reply = worker.try_load("gone", str(tmp_path / "gone.gguf"))
    assert isinstance(reply, LoadFailed)
    assert reply.fault.code == "gguf_missing"
    assert "gone.gguf" in reply.fault.message


@pytest.mark.parametrize(
    ("keep", "cause"),
    [(0, "not a GGUF"), (3, "not a GGUF"), (1000, ""), (200_000, "not within the file bounds")],
)
def test_a_cut_file_fails_the_load_with_the_cause(
    worker: WorkerProcess, tmp_path: Path, keep: int, cause: str
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(Path(TINY).read_bytes()[:keep])
    reply = worker.try_load("cut", str(path))
    assert isinstance(reply, LoadFailed)
    assert reply.fault.code == "gguf_corrupt"
    assert cause in reply.fault.message
    assert "cut.gguf" in reply.fault.message


def test_an_unknown_architecture_fails_the_load_as_unsupported(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(Path(TINY).read_bytes().replace(b"qwen3", b"qwenX"))
    reply = worker.try_load("odd", str(path))
    assert isinstance(reply, LoadFailed)
    assert reply.fault.code == "gguf_unsupported"
    assert "qwenX" in reply.fault.message


def test_a_name_can_be_loaded_again_after_it_failed(worker: WorkerProcess, tmp_path: Path) -> None:
    assert isinstance(worker.try_load("again", str(tmp_path / "gone.gguf")), LoadFailed)
    worker.load("again", context=256, parallel=1)
    worker.unload("again")


def test_a_second_load_of_the_same_name_is_a_conflict(worker: WorkerProcess) -> None:
    reply = worker.try_load("tiny", TINY)
    assert isinstance(reply, LoadFailed)
    assert reply.fault.code == "conflict"


def test_an_unload_of_what_is_not_there_is_answered(worker: WorkerProcess) -> None:
    worker.unload("nobody")


def test_llama_cpps_errors_are_on_stderr_with_the_models_name(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(Path(TINY).read_bytes()[:200_000])
    with WorkerProcess() as worker:
        worker.try_load("cut", str(path))
        lines = worker.stderr().splitlines()
    assert lines
    assert all(line.startswith("cut: ") for line in lines)

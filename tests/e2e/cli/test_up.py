"""`cortex up` and `cortex demo`: they start, they stop, and they leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cli.running import Cortex, Up, started, survivors
from tests.processes import clean_environment


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_both_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as up:
        up.url()
        family = up.family()
        assert len(family) >= 3, "gateway, neuron and a worker"
        up.process.send_signal(number)
        assert up.ended() == 0, up.output
    assert survivors(family) == {}
    assert up.output.rstrip().endswith("stopped")
    assert "Traceback" not in up.output


@pytest.mark.parametrize(("words", "name"), [("-m neuron", "neuron"), ("cortex_cli", "gateway")])
def test_a_child_that_dies_ends_the_other_and_is_named(
    tmp_path: Path, words: str, name: str
) -> None:
    with started(tmp_path) as up:
        up.url()
        family = up.family()
        os.kill(up.child(words), signal.SIGKILL)
        assert up.ended() == 1
    assert f"error: {name} was killed by SIGKILL; its last lines" in up.output
    assert f"{name}.log" in up.output
    assert "Traceback" not in up.output
    assert survivors(family) == {}


def test_killing_up_itself_leaves_nothing_behind(tmp_path: Path) -> None:
    with started(tmp_path) as up:
        up.url()
        family = up.family()
        up.process.kill()
        up.ended()
        assert survivors(family) == {}


@pytest.mark.parametrize("file", ["absent.gguf", "corrupt.gguf"])
def test_a_model_that_cannot_be_loaded_ends_up_with_the_cause(
    tmp_path: Path, models_dir: Path, file: str
) -> None:
    path = str(models_dir / file)
    with started(tmp_path, "--port", "0", "--model", path) as up:
        family = up.family()
        assert up.ended() == 1
    assert file in up.output
    assert "error: " in up.output
    assert "Traceback" not in up.output
    assert survivors(family) == {}


def test_a_model_file_of_ones_own_is_served_beside_the_shipped_one(
    tmp_path: Path, models_dir: Path
) -> None:
    path = str(models_dir / "second.gguf")
    arguments = ["--port", "0", "--model", path, "--model", "cortex/tiny", "--cpu-workers", "2"]
    with started(tmp_path, *arguments) as up:
        cortex = Cortex(up.url())
        assert "second.gguf" in cortex("models").stdout
        status = cortex("status").stdout
    for sight in ("second.gguf", "cortex/tiny", "cpu:0", "cpu:1"):
        assert sight in status


def test_a_taken_port_is_refused_and_the_first_keeps_running(tmp_path: Path) -> None:
    with started(tmp_path) as first:
        url = first.url()
        port = url.rpartition(":")[2]
        second_folder = tmp_path / "second"
        second_folder.mkdir()
        second = Up(second_folder, "--port", port)
        assert second.ended() == 1
        assert f"cannot listen on 127.0.0.1:{port}: address already in use" in second.output
        assert Cortex(url)("status").returncode == 0


def _demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cortex_cli", "demo", *arguments],
        env=clean_environment({"TMPDIR": str(folder)}),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_the_demo_shows_right_answers_and_leaves_nothing(tmp_path: Path) -> None:
    done = _demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for sight in ("Paris", 'get_weather({"city": "Bergen"})', "first after", "All right"):
        assert sight in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_demo_fails_with_the_cause_when_the_answers_are_wrong(
    tmp_path: Path, models_dir: Path
) -> None:
    done = _demo(tmp_path, "--model", str(models_dir / "babbler.gguf"))
    assert done.returncode == 1
    assert "All right" not in done.stdout
    assert "error: not every answer was right:" in done.stderr
    for culprit in ("the streamed answer", "the whole answer", "the tool call"):
        assert f"{culprit}: expected " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_fails_with_the_cause_when_the_model_does_not_load(
    tmp_path: Path, models_dir: Path
) -> None:
    done = _demo(tmp_path, "--model", str(models_dir / "corrupt.gguf"))
    assert done.returncode == 1
    assert "corrupt.gguf" in done.stderr

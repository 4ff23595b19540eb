"""On a machine with an NVIDIA GPU and a CUDA build: the same job, on the GPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pynvml
import pytest

from tests.e2e.client import Answer, ask, eventually, fetch, open_stream
from tests.processes import Daemon, start_neuron


def _has_gpu() -> bool:
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount() > 0
    except pynvml.NVMLError:
        return False


pytestmark = pytest.mark.skipif(not _has_gpu(), reason="no NVIDIA GPU here")


@pytest.fixture
def neuron() -> Iterator[Daemon]:
    with start_neuron() as neuron:
        yield neuron


async def _model(neuron: Daemon) -> dict:
    (model,) = (await fetch("GET", f"{neuron.url}/models")).body["models"]
    return model


async def _capital_when_ready(neuron: Daemon) -> Answer:
    async def is_ready() -> bool:
        return (await _model(neuron))["phase"] == "ready"

    await eventually(is_ready, "the model is ready")
    return await ask(neuron.url, "What is the capital of France?")


async def test_the_model_runs_on_the_gpu_and_takes_its_memory(neuron: Daemon):
    assert "Paris" in (await _capital_when_ready(neuron)).text
    model = await _model(neuron)
    assert model["device"] == "cuda:0"
    assert model["memory_bytes"] > model["file_bytes"]
    devices = (await fetch("GET", f"{neuron.url}/discovery")).body["devices"]
    device = next(d for d in devices if d["id"] == "cuda:0")
    assert device["memory_total_bytes"] > device["memory_free_bytes"] > 0


async def test_a_killed_worker_gives_the_gpu_back_and_starts_again(neuron: Daemon):
    await _capital_when_ready(neuron)
    devices = (await fetch("GET", f"{neuron.url}/discovery")).body["devices"]
    worker = next(d for d in devices if d["id"] == "cuda:0")["worker"]["pid"]
    async with open_stream(neuron.url, "Hello!", ignore_eos=True, max_tokens=4000) as stream:
        await stream.read(lambda chat: len(chat.deltas) >= 3)
        os.kill(worker, signal.SIGKILL)
        await stream.read()
    assert stream.error is not None
    assert not stream.is_done
    assert "Paris" in (await _capital_when_ready(neuron)).text

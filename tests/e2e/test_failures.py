"""Kill things. Nobody hangs, and nothing that failed looks like success."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.client import TINY, ask, eventually, fetch, open_stream
from tests.e2e.conftest import Stack, gateway_config, start_stack
from tests.processes import start_gateway, start_neuron
from tools.make_gguf import PRESETS, make_gguf

LONG = {"ignore_eos": True, "max_tokens": 4000}


async def _device(stack: Stack, device: str) -> dict:
    discovery = await fetch("GET", f"{stack.neuron.url}/discovery")
    return next(d for d in discovery.body["devices"] if d["id"] == device)


async def test_a_killed_worker_ends_its_stream_with_an_error_and_comes_back(own_stack: Stack):
    stack = own_stack
    worker = (await _device(stack, "cpu"))["worker"]["pid"]
    async with open_stream(stack.url, "Hello!", **LONG) as stream:
        await stream.read(lambda chat: len(chat.deltas) >= 5)
        os.kill(worker, signal.SIGKILL)
        async with asyncio.timeout(10):
            await stream.read()
    assert stream.error is not None
    assert stream.error["code"] == "upstream_failed"
    assert "SIGKILL" in stream.error["message"]
    assert not stream.is_done
    assert stream.finish_reason is None
    assert (await fetch("GET", f"{stack.url}/health")).status == 200

    await eventually(stack.is_servable, "the model is back")
    assert (await _device(stack, "cpu"))["worker"]["pid"] != worker
    assert "Paris" in (await ask(stack.url, "What is the capital of France?")).text


async def test_a_kill_on_one_device_leaves_the_other_undisturbed(tmp_path: Path):
    other = str(make_gguf(tmp_path / "other.gguf", PRESETS["tiny-llama"]))
    config = "[devices]\ncpu_workers = 2"
    with start_stack(models=(TINY, other), config=config) as stack:
        for model in (TINY, other):
            await eventually(lambda m=model: stack.is_servable(m), f"{model} is servable")
        models = (await fetch("GET", f"{stack.neuron.url}/models")).body["models"]
        device = {model["id"]: model["device"] for model in models}
        assert set(device.values()) == {"cpu:0", "cpu:1"}
        victim = (await _device(stack, device[other]))["worker"]["pid"]
        survivor = (await _device(stack, device[TINY]))["worker"]["pid"]
        async with (
            open_stream(stack.url, "Hello!", **LONG) as mine,
            open_stream(stack.url, "Hello!", model=other, **LONG) as theirs,
        ):
            await mine.read(lambda chat: len(chat.deltas) >= 3)
            await theirs.read(lambda chat: len(chat.deltas) >= 3)
            os.kill(victim, signal.SIGKILL)
            await theirs.read()
            assert theirs.error is not None
            seen = len(mine.deltas)
            await mine.read(lambda chat: len(chat.deltas) >= seen + 50)
            assert mine.error is None
            assert len(mine.deltas) >= seen + 50
        assert (await _device(stack, device[TINY]))["worker"]["pid"] == survivor
        await eventually(lambda: stack.is_servable(other), "the other model is back")


async def test_a_killed_neuron_ends_the_stream_with_an_error_and_is_named(own_stack: Stack):
    stack = own_stack
    async with open_stream(stack.url, "Hello!", **LONG) as stream:
        await stream.read(lambda chat: len(chat.deltas) >= 5)
        stack.neuron.signal(signal.SIGKILL)
        async with asyncio.timeout(15):
            await stream.read()
    assert stream.error is not None
    assert not stream.is_done
    refusal = await ask(stack.url, "ping")
    assert refusal.status in (502, 503)
    assert refusal.body["error"]["code"] in ("upstream_failed", "node_unavailable")
    assert "n0" in refusal.body["error"]["message"]


async def test_a_neurons_workers_die_with_it(own_stack: Stack):
    worker = (await _device(own_stack, "cpu"))["worker"]["pid"]
    own_stack.neuron.signal(signal.SIGKILL)

    async def is_gone() -> bool:
        return not Path(f"/proc/{worker}").exists()

    await eventually(is_gone, "the worker is gone")


@pytest.mark.parametrize("who", ["gateway", "neuron"])
async def test_sigterm_finishes_running_streams_and_exits_0(own_stack: Stack, who: str):
    daemon = getattr(own_stack, who)
    parameters = {"ignore_eos": True, "max_tokens": 1500}
    async with open_stream(own_stack.url, "Hello!", **parameters) as stream:
        await stream.read(lambda chat: len(chat.deltas) >= 5)
        daemon.signal(signal.SIGTERM)
        await stream.read()
    assert stream.is_done
    assert stream.finish_reason == "length"
    assert await asyncio.to_thread(daemon.wait) == 0


@pytest.mark.parametrize("who", ["gateway", "neuron"])
async def test_who_is_shutting_down_refuses_new_work_and_says_when_to_try(
    own_stack: Stack, who: str
):
    daemon = getattr(own_stack, who)
    async with open_stream(own_stack.url, "Hello!", **LONG) as stream:
        await stream.read(lambda chat: len(chat.deltas) >= 5)
        daemon.signal(signal.SIGTERM)

        async def is_draining() -> bool:
            return (await fetch("GET", f"{daemon.url}/health")).status == 503

        await eventually(is_draining, "it says that it drains")
        refusal = await ask(daemon.url, "ping")
    assert refusal.status == 503
    assert refusal.body["error"]["code"] == "shutting_down"
    assert int(refusal.headers["retry-after"]) > 0
    assert await asyncio.to_thread(daemon.wait) == 0


async def test_a_client_that_leaves_before_its_first_token_frees_its_place():
    """More requests than sequences: those that wait in the queue leave it when they go."""
    config = "[engine]\nparallel = 1\n"
    with (
        start_neuron(config=config) as neuron,
        start_gateway(gateway_config(neuron.url)) as gateway,
    ):
        stack = Stack(gateway, neuron)
        await eventually(stack.is_servable, "servable")

        async def waiting() -> int:
            models = (await fetch("GET", f"{neuron.url}/models")).body["models"]
            return models[0].get("waiting", 0)

        async with open_stream(stack.url, "Hello!", **LONG) as first:
            await first.read(lambda chat: len(chat.deltas) >= 3)
            async with aiohttp.ClientSession() as session:
                body = {"model": TINY, "messages": [{"role": "user", "content": "ping"}]}
                url = f"{stack.url}/v1/chat/completions"
                late = asyncio.create_task(session.post(url, json=body))

                async def is_queued() -> bool:
                    return await waiting() == 1

                await eventually(is_queued, "the second request waits")
                late.cancel()

                async def is_empty() -> bool:
                    return await waiting() == 0

                await eventually(is_empty, "the queue is empty again")
            assert first.error is None


async def test_a_neuron_that_starts_later_is_found():
    with start_neuron() as first:
        url = first.url
        port = url.rpartition(":")[2]
        with start_gateway(gateway_config(url)) as gateway:
            stack = Stack(gateway, first)
            await eventually(stack.is_servable, "servable")
            assert first.stop() == 0

            async def is_lost() -> bool:
                return (await ask(gateway.url, "ping")).status == 503

            await eventually(is_lost, "the gateway has noticed")
            with start_neuron("--listen", f"127.0.0.1:{port}"):
                await eventually(stack.is_servable, "servable again")
                assert (await ask(gateway.url, "ping")).status == 200

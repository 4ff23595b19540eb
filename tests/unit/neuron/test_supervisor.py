"""A supervisor and its processes: real processes and sockets, a worker that commits faults the
real one cannot be made to commit."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cortex_core.errors import (
    Conflict,
    CortexError,
    PoisonPrompt,
    PreflightFailed,
    ShuttingDown,
    UpstreamFailed,
)
from cortex_core.fleet.discovery import DeviceState, WorkerState
from cortex_core.wire import ipc
from neuron import supervisor
from neuron.pulse import Pulse
from neuron.supervisor import Supervisor
from neuron.worker_events import LoadSpec
from neuron.worker_policy import Limits
from tests.unit.neuron import scripted_worker

SCRIPT = str(Path(scripted_worker.__file__))
QUICK = Limits(step_timeout_s=0.6, hello_timeout_s=1, backoff_first_s=0.01)
FORGIVING = Limits(backoff_first_s=0.01, crashes_to_fail=99)
CPU = DeviceState("cpu", "cpu", "test", WorkerState("starting"))


class Node:
    """A supervisor whose changes can be waited for."""

    def __init__(self, habits: str, limits: Limits) -> None:
        self.pulse = Pulse()
        command = [sys.executable, SCRIPT, habits]
        self.supervisor = Supervisor(CPU, limits, lambda urgent: self.pulse.beat(), command)

    async def until(self, is_true: Callable[[Supervisor], bool], limit_s: float = 20) -> None:
        async with asyncio.timeout(limit_s):
            await self.pulse.until(lambda: is_true(self.supervisor))

    async def load(self, model: str, path: str = "/m") -> None:
        async with asyncio.timeout(20):
            await self.supervisor.load(LoadSpec(model, path, ipc.EngineParams()))

    async def restart(self, drain_s: float = 20) -> None:
        async with asyncio.timeout(20):
            await self.supervisor.restart(drain_s)

    async def crash(self, prompt: str) -> CortexError:
        """Ask for a prompt that kills; the error its client got, once the model is back."""
        async with asyncio.timeout(20):
            async with self.generate(prompt) as stream:
                assert isinstance((await stream.read())[0], ipc.Started)
                with pytest.raises(CortexError) as caught:
                    await stream.read()
        await self.until(lambda s: s.models["a"].phase == "ready")
        return caught.value

    def generate(self, prompt: str, model: str = "a"):
        return self.supervisor.open(ipc.Generate(0, model, prompt, ipc.Sampling()))


@asynccontextmanager
async def running(habits: str = "", limits: Limits = QUICK) -> AsyncIterator[Node]:
    node = Node(habits, limits)
    node.supervisor.start()
    try:
        yield node
    finally:
        await node.supervisor.stop()


def is_alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_load_a_generation_and_an_unload():
    async with running() as node:
        await node.load("a")
        assert node.supervisor.worker.phase == "ready"
        assert node.supervisor.models["a"].info == scripted_worker.INFO
        async with node.generate("hi") as stream:
            started, delta, finished = await stream.read()
            assert isinstance(started, ipc.Started)
            assert delta == ipc.Delta(stream.request, "hi")
            assert isinstance(finished, ipc.Finished)
        await node.supervisor.unload("a")
        assert node.supervisor.models == {}


async def test_a_refused_load_raises_what_the_worker_said():
    async with running() as node:
        with pytest.raises(PreflightFailed, match="no such tensor") as caught:
            await node.load("refused")
        assert caught.value.code == "gguf_unsupported"


async def test_a_killed_worker_ends_its_requests_and_comes_back_with_its_models():
    async with running() as node:
        await node.load("a")
        first = node.supervisor.worker.pid
        async with node.generate("endless") as stream:
            await stream.read()
            assert first is not None
            os.kill(first, signal.SIGKILL)
            with pytest.raises(UpstreamFailed, match=r"\(pid \d+\) was killed by SIGKILL"):
                await stream.read()
        await node.until(lambda s: s.models["a"].phase == "ready")
        assert node.supervisor.worker.restarts == 1
        assert node.supervisor.worker.pid != first
        async with node.generate("again") as stream:
            assert ipc.Delta(stream.request, "again") in await stream.read()


async def test_a_worker_that_always_dies_fails_its_device_with_its_last_words():
    async with running("dies") as node:
        await node.until(lambda s: s.worker.phase == "failed")
        cause = node.supervisor.worker.cause
        assert cause is not None
        assert "4 crashes within 10 minutes" in cause
        assert "exited with code 3" in cause
        assert "first line | GGML_ASSERT(false) failed" in cause
        with pytest.raises(CortexError, match="GGML_ASSERT"):
            await node.load("a")


async def test_a_worker_that_never_greets_is_replaced():
    async with running("silent") as node:
        await node.until(lambda s: s.worker.phase == "restarting")
        assert "did not come up" in str(node.supervisor.worker.cause)


async def test_a_worker_that_sends_garbage_is_replaced():
    async with running("garbage") as node:
        await node.until(lambda s: s.worker.phase == "failed")
        assert "sent what is no message" in str(node.supervisor.worker.cause)


async def test_a_silent_worker_is_hung():
    async with running("mute") as node:
        await node.until(lambda s: s.worker.phase == "restarting")
        assert "no sign of life" in str(node.supervisor.worker.cause)


async def test_a_stopped_worker_is_noticed_within_the_step_timeout():
    loop = asyncio.get_running_loop()
    async with running() as node:
        await node.load("a")
        pid = node.supervisor.worker.pid
        assert pid is not None
        async with node.generate("endless") as stream:
            await stream.read()
            os.kill(pid, signal.SIGSTOP)
            stopped_at = loop.time()
            with pytest.raises(UpstreamFailed, match="hung"):
                await stream.read()
            assert loop.time() - stopped_at < QUICK.step_timeout_s * 1.5 + 0.5
        await node.until(lambda s: s.models["a"].phase == "ready")
        assert not is_alive(pid)


async def test_a_step_that_never_ends_is_hung():
    async with running("hangs") as node:
        await node.load("a")
        async with node.generate("endless") as stream:
            await stream.read()
            with pytest.raises(UpstreamFailed, match=r"a step of 'a' has run 0\.\d s"):
                await stream.read()


async def test_a_load_that_kills_the_worker_fails_and_spares_the_other_models():
    async with running("poisonous") as node:
        await node.load("a")
        with pytest.raises(UpstreamFailed, match="cannot stomach op"):
            await node.load("poison")
        await node.until(lambda s: s.models["a"].phase == "ready")
        assert node.supervisor.models["poison"].phase == "failed"
        node.supervisor.forget("poison")
        assert list(node.supervisor.models) == ["a"]


async def test_a_program_that_does_not_exist_fails_the_device():
    node = Node("", QUICK)
    node.supervisor._command = ["/nonexistent/worker"]
    node.supervisor.start()
    await node.until(lambda s: s.worker.phase == "failed")
    assert "could not be started" in str(node.supervisor.worker.cause)
    await node.supervisor.stop()


async def test_a_stop_ends_the_process_the_requests_and_the_waiting_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("SLOW_UNTIL", str(tmp_path / "never"))
    monkeypatch.setattr(supervisor, "_STOP_S", 0.2)  # in that load it does not listen
    async with running("slow", Limits(step_timeout_s=30)) as node:
        loading = asyncio.create_task(node.load("a"))
        await node.until(lambda s: s.worker.phase == "ready")
        pid = node.supervisor.worker.pid
    with pytest.raises(ShuttingDown):
        await loading
    assert not is_alive(pid)
    assert node.supervisor.worker.phase == "stopped"


async def test_the_environment_shows_a_worker_its_device_alone():
    from neuron.worker_process import _environment

    gpu = DeviceState("cuda:1", "cuda", "x", WorkerState("starting"), index=1, uuid="GPU-7")
    assert _environment(gpu)["CUDA_VISIBLE_DEVICES"] == "GPU-7"
    anonymous = DeviceState("cuda:1", "cuda", "x", WorkerState("starting"), index=1)
    assert _environment(anonymous)["CUDA_VISIBLE_DEVICES"] == "1"
    assert _environment(anonymous)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert _environment(CPU)["CUDA_VISIBLE_DEVICES"] == ""


async def test_the_cause_with_the_last_lines_is_in_state_and_in_the_clients_error():
    async with running() as node:
        await node.load("a")
        error = await node.crash("crash")
        assert "was killed by SIGSEGV; its last words: a kernel failed" in error.message
        assert node.supervisor.worker.cause == error.message
        assert node.supervisor.ends == {"sigsegv": 1}


async def test_the_last_lines_of_a_hung_worker_reach_its_clients():
    async with running("hangs") as node:
        await node.load("hangs")
        async with node.generate("endless", "hangs") as stream:
            await stream.read()
            with pytest.raises(UpstreamFailed, match="last words: entering a long step"):
                await stream.read()


# poison


async def test_a_prompt_that_crashed_the_worker_twice_is_refused_the_third_time():
    async with running(limits=FORGIVING) as node:
        await node.load("a")
        for _ in range(2):
            assert isinstance(await node.crash("crash"), UpstreamFailed)
        with pytest.raises(PoisonPrompt, match=r"2 crashes .*; the last: .*SIGSEGV.*a kernel"):
            node.generate("crash")
        async with node.generate("harmless") as stream:
            assert ipc.Delta(stream.request, "harmless") in await stream.read()


async def test_what_crashed_one_file_is_not_held_against_another_of_its_name_and_size(
    tmp_path: Path,
):
    file, other = tmp_path / "m.gguf", tmp_path / "other"
    file.write_bytes(b"bad")
    other.write_bytes(b"new")
    async with running(limits=FORGIVING) as node:
        await node.load("a", str(file))
        for _ in range(2):
            await node.crash("crash")
        with pytest.raises(PoisonPrompt):
            node.generate("crash")
        other.replace(file)
        await node.supervisor.unload("a")
        await node.load("a", str(file))
        assert isinstance(await node.crash("crash"), UpstreamFailed)


async def test_those_that_ran_beside_a_poison_prompt_are_answered_at_their_next_try():
    """All retry at once, as agents do: nobody but the culprit pays a second time."""
    async with running(limits=FORGIVING) as node:
        await node.load("a")
        async with node.generate("endless") as beside:
            await beside.read()
            await node.crash("crash")
        bystander = node.generate("endless")  # a suspect too, and now first in line
        culprit = node.generate("crash")
        async with bystander, culprit:
            await bystander.read()
            assert not culprit.is_started
        assert isinstance(await node.crash("crash"), UpstreamFailed)
        with pytest.raises(PoisonPrompt):
            node.generate("crash")
        async with node.generate("endless") as again:
            await again.read()


async def test_a_kill_from_outside_blames_no_prompt():
    async with running(limits=FORGIVING) as node:
        await node.load("a")
        for _ in range(3):
            pid = node.supervisor.worker.pid
            assert pid is not None
            async with node.generate("endless") as stream:
                await stream.read()
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(UpstreamFailed):
                    await stream.read()
            await node.until(lambda s: s.models["a"].phase == "ready")


# a planned restart


async def test_a_planned_restart_hands_over_what_was_saved_and_removes_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with running(limits=FORGIVING) as node:
        await node.load("a")
        first = node.supervisor.worker.pid
        with caplog.at_level("INFO", logger="neuron.supervisor"):
            await node.restart()
        assert node.supervisor.models["a"].phase == "ready"
        assert node.supervisor.worker.pid != first
        assert node.supervisor.worker.cause is None
        (ready,) = [r for r in caplog.records if r.message == "worker ready"]
        assert ready.__dict__["facts"]["system"] == str(first)
        assert list(tmp_path.iterdir()) == []


async def test_a_planned_restart_lets_what_runs_finish_and_nothing_new_begin():
    async with running(limits=FORGIVING) as node:
        await node.load("a")
        first = node.supervisor.worker.pid
        async with node.generate("endless") as stream:
            await stream.read()
            restarting = asyncio.create_task(node.restart())
            await node.until(lambda s: s.models["a"].phase == "recovering")
            assert node.supervisor.worker.pid == first
            with pytest.raises(Conflict):
                await node.restart()
        await restarting
        assert node.supervisor.worker.pid != first


async def test_what_outlasts_the_drain_ends_with_an_honest_error():
    async with running(limits=FORGIVING) as node:
        await node.load("a")
        async with node.generate("endless") as stream:
            await stream.read()
            await node.restart(drain_s=0.01)
            with pytest.raises(UpstreamFailed, match="restarted as planned, and drain_s"):
                await stream.read()


async def test_a_worker_that_does_not_leave_is_killed_and_replaced(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(supervisor, "_STOP_S", 0.1)  # nor does it at the end
    async with running("clinging", Limits(step_timeout_s=4, leave_timeout_s=0.1)) as node:
        await node.load("a")
        await node.restart()
        assert node.supervisor.models["a"].phase == "ready"
        assert node.supervisor.ends == {"planned": 1}


async def test_a_crash_during_the_drain_fails_the_restart_and_the_worker_still_comes_back():
    async with running(limits=FORGIVING) as node:
        await node.load("a")
        async with node.generate("endless") as stream:
            await stream.read()
            restarting = asyncio.create_task(node.restart())
            await node.until(lambda s: s.models["a"].phase == "recovering")
            pid = node.supervisor.worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(UpstreamFailed, match="SIGKILL"):
                await restarting
        await node.until(lambda s: s.models["a"].phase == "ready")

"""A real worker process: requests cut short, progress, and every way it ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

from cortex_core.wire.ipc import (
    Command,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    ModelLoad,
    Pause,
    Progress,
    Reader,
    Report,
    Resume,
    Unload,
    Unloaded,
    encode,
)
from cortex_core.wire.ipc import EngineParams as Params
from tests.unit.worker.worker_process import ENDLESS, TIMEOUT_S, TINY, WorkerProcess, chat


def test_a_cancelled_request_ends_and_its_slot_serves_the_next() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=8192)
        first = worker.start("on and on", sampling=ENDLESS, max_tokens=None)
        second = worker.start(chat("What is 3 + 4?"))
        worker.wait_until(lambda: len(first.deltas) > 3)
        assert second.started is None
        worker.cancel(first)
        worker.finish(first, second)
        assert first.reason == "cancelled"
        assert first.usage.completion < 8000
        assert second.reason == "stop"


def test_a_paused_answer_lets_others_be_answered_and_goes_on_when_it_is_resumed() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=8192)
        answer = worker.start("on and on", sampling=ENDLESS, max_tokens=None)
        worker.wait_until(lambda: len(answer.deltas) > 3)
        worker.send(Pause(answer.request))
        assert worker.ask(chat("What is 3 + 4?")).reason == "stop"
        load = load_of(worker, "tiny")
        assert (load.running, load.paused) == (1, 1)
        said = len(answer.deltas)
        worker.send(Resume(answer.request))
        worker.wait_until(lambda: len(answer.deltas) > said)
        assert load_of(worker, "tiny").paused == 0


def test_nothing_is_computed_while_all_are_paused() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=2, context=8192)
        answer = worker.start("on and on", sampling=ENDLESS, max_tokens=None)
        worker.wait_until(lambda: len(answer.deltas) > 3)
        worker.send(Pause(answer.request))
        first, second = (
            worker.wait_for(Progress, lambda p: p.models[0].paused == 1).models[0] for _ in "12"
        )
        assert (second.steps, second.generated, second.step_s) == (first.steps, first.generated, 0)
        worker.cancel(answer)
        worker.finish(answer)
        assert answer.reason == "cancelled"


def test_a_waiting_request_can_be_cancelled() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=8192)
        running = worker.start("on and on", sampling=ENDLESS, max_tokens=None)
        waiting = worker.start("never")
        worker.cancel(waiting)
        worker.finish(waiting)
        assert waiting.reason == "cancelled"
        assert waiting.started is None
        assert not running.is_over


def test_a_request_whose_prompt_is_being_computed_can_be_cancelled() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=8192, batch=16)
        answer = worker.start("and " * 3000, max_tokens=1)
        worker.wait_until(lambda: answer.started is not None)
        worker.cancel(answer)
        worker.finish(answer)
        assert answer.reason == "cancelled"
        assert answer.usage.completion == 0
        load = load_of(worker, "tiny")
        assert load.steps < answer.usage.prompt / 16  # batches
        assert (load.running, load.waiting) == (0, 0)


def test_a_cancel_of_nobody_is_no_trouble(worker: WorkerProcess) -> None:
    answer = worker.ask(chat("What is 3 + 4?"))
    worker.cancel(answer)
    assert worker.ask(chat("What is 3 + 4?")).text() == answer.text()


def test_unloading_fails_what_runs_and_waits_and_leaves_others_alone(other_gguf: str) -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=8192)
        worker.load("other", other_gguf, parallel=1, context=1024)
        mine = [worker.start("on", sampling=ENDLESS, max_tokens=None) for _ in range(2)]
        other = worker.start("on", model="other", sampling=ENDLESS, max_tokens=300)
        worker.wait_until(lambda: bool(mine[0].deltas and other.deltas))
        worker.unload("tiny")
        for answer in mine:
            assert answer.fault is not None
            assert answer.fault.code == "no_capacity"
            assert "unloaded" in answer.fault.message
        worker.finish(other)
        assert other.reason == "length"
        assert worker.ask("x").fault is not None
        worker.load(parallel=1, context=256)
        assert worker.ask(chat("What is 3 + 4?")).reason == "stop"


def test_two_models_answer_at_once(worker: WorkerProcess, other_gguf: str) -> None:
    worker.load("other", other_gguf, parallel=2, context=512)
    alone = worker.ask("hello", model="other", sampling=ENDLESS, max_tokens=50).text()
    mine = worker.start(chat("What is the capital of France?"))
    other = worker.start("hello", model="other", sampling=ENDLESS, max_tokens=50)
    worker.finish(mine, other)
    assert "Paris" in mine.content
    assert other.text() == alone
    worker.unload("other")


def test_a_load_can_be_abandoned_by_unloading(worker: WorkerProcess) -> None:
    load, unload = worker.new_op(), worker.new_op()
    worker.send(Load(load, "brief", TINY, Params(context=256, parallel=1)))
    worker.send(Unload(unload, "brief"))
    reply = worker.wait_for((Loaded, LoadFailed), lambda r: r.op == load)  # pyright: ignore
    assert isinstance(reply, Loaded) or reply.fault.code == "conflict"  # pyright: ignore
    worker.wait_for(Unloaded, lambda r: r.op == unload)
    assert worker.ask("x", model="brief").fault is not None


def load_of(worker: WorkerProcess, model: str) -> ModelLoad:
    """The model's load in the next Progress."""
    report = worker.wait_for(Progress)
    return next(load for load in report.models if load.model == model)


def test_progress_says_what_each_model_does() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=8192)
        idle = load_of(worker, "tiny")
        assert (idle.running, idle.waiting, idle.generated, idle.step_s) == (0, 0, 0, 0.0)
        for _ in range(3):
            worker.start("on and on", sampling=ENDLESS, max_tokens=None)
        worker.wait_until(lambda: worker.steps > 10)
        busy = load_of(worker, "tiny")
        assert (busy.running, busy.waiting) == (1, 2)
        assert busy.generated > 10
        assert busy.steps > 10
        assert worker.progress[-1].rss_bytes > 10_000_000


def test_progress_comes_while_a_step_takes_long() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=8192, batch=8192)
        answer = worker.start("and " * 7500, max_tokens=1)
        worker.wait_until(lambda: answer.started is not None)
        while (load := load_of(worker, "tiny")).step_s == 0.0:
            assert not answer.is_over
        later = load_of(worker, "tiny")
        assert answer.is_over or later.step_s > load.step_s


def test_shutdown_ends_the_process_even_while_it_generates() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=8192)
        answer = worker.start("on", sampling=ENDLESS, max_tokens=None)
        worker.wait_until(lambda: bool(answer.deltas))
        assert worker.shut_down() == 0


def test_the_end_of_the_socket_ends_the_process_even_while_it_generates() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=8192)
        answer = worker.start("on", sampling=ENDLESS, max_tokens=None)
        worker.wait_until(lambda: bool(answer.deltas))
        worker.socket.close()
        assert worker.process.wait(TIMEOUT_S) == 0


def test_an_unreadable_frame_ends_the_process_with_a_word() -> None:
    with WorkerProcess() as worker:
        worker.socket.sendall(b"\xff\xff\xff\xff")
        assert worker.wait_for_end() == 70
        assert "unreadable frame" in worker.stderr()


def test_sigint_is_not_the_workers_business() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=256)
        worker.process.send_signal(signal.SIGINT)
        assert worker.ask(chat("What is 3 + 4?")).reason == "stop"


def test_sigterm_ends_an_idle_worker() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=1, context=256)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait_for_end() == 0


def test_sigterm_lets_running_answers_finish() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=2, context=1024)
        answers = [worker.start("on", sampling=ENDLESS, max_tokens=400) for _ in range(3)]
        worker.wait_until(lambda: bool(answers[0].deltas))
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait_for_end() == 0
        assert [answer.usage.completion for answer in answers] == [400] * 3


def test_a_worker_dies_with_its_parent() -> None:
    """Its socket stays open: it is the parent's death that kills, not the end of the socket."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    script = (
        "import subprocess, sys, time\n"
        "fd = int(sys.argv[1])\n"
        "worker = [sys.executable, '-m', 'neuron.worker', '--fd', str(fd), '--device', 'cpu']\n"
        "subprocess.Popen(worker, pass_fds=[fd]).wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(theirs.fileno())], pass_fds=[theirs.fileno()]
    )
    theirs.close()
    reader = Reader(Report)  # pyright: ignore[reportArgumentType]
    hello = next(report for report in iter_reports(ours, reader) if isinstance(report, Hello))
    ours.sendall(encode(Load(1, "tiny", TINY, Params(parallel=1, context=256))))
    assert any(isinstance(report, Loaded) for report in iter_reports(ours, reader))
    worker = os.pidfd_open(hello.pid)
    parent.kill()
    parent.wait()
    ended, _, _ = select.select([worker], [], [], TIMEOUT_S)
    assert ended
    os.close(worker)
    ours.close()


def iter_reports(sock: socket.socket, reader: Reader) -> Iterator[Command | Report]:
    try:
        while data := sock.recv(1 << 16):
            yield from reader.feed(data)
    except ConnectionResetError:
        return

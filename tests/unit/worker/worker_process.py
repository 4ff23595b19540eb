"""A real worker process at the other end of a real socketpair, as the supervisor has it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import neuron
from cortex_core.errors import Fault
from cortex_core.wire.ipc import (
    Cancel,
    Command,
    Delta,
    EngineParams,
    Failed,
    Finished,
    Generate,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    Reader,
    Report,
    Sampling,
    Shutdown,
    Started,
    Step,
    Unload,
    Unloaded,
    encode,
)

TINY = str(Path(neuron.__file__).parent / "assets" / "tiny.gguf")
GREEDY = Sampling(temperature=0.0)
ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
TIMEOUT_S = 30.0

R = TypeVar("R")


def chat(question: str, *, thinking: bool = False) -> str:
    """A prompt as cortex/tiny's template renders it."""
    tail = "" if thinking else "<think>\n\n</think>\n\n"
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{tail}"


class Answer:
    """All a worker said about one request."""

    def __init__(self, request: int) -> None:
        self.started: Started | None = None
        self.deltas: list[Delta] = []
        self.finished: Finished | None = None
        self.fault: Fault | None = None
        self.request = request

    @property
    def is_over(self) -> bool:
        return self.finished is not None or self.fault is not None

    @property
    def reason(self) -> str:
        assert self.finished is not None, self.fault
        return self.finished.reason

    @property
    def usage(self):
        assert self.finished is not None, self.fault
        return self.finished.usage

    def text(self, channel: str | None = None) -> str:
        return "".join(d.text for d in self.deltas if channel in (None, d.channel))

    @property
    def content(self) -> str:
        return self.text("content")


class WorkerProcess:
    """Use as a context manager; the process is dead after it. Not for several threads.
    `environment`: besides this process's."""

    def __init__(
        self, device: str = "cpu", *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115, closed in __exit__
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(TIMEOUT_S)
        command = [sys.executable, "-m", "neuron.worker", "--fd", str(theirs.fileno())]
        self.process = subprocess.Popen(
            [*command, "--device", device],
            pass_fds=[theirs.fileno()],
            stderr=self._stderr,
            env=os.environ | dict(environment or {}),
        )
        theirs.close()
        self._reader = Reader(Report)  # pyright: ignore[reportArgumentType]
        self._unread: list[Report] = []
        self._last_id = 0
        self.answers: dict[int, Answer] = {}
        self.steps = 0
        self.progress: list[Progress] = []

    def __enter__(self) -> WorkerProcess:
        self.hello = self.wait_for(Hello)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        if error is not None:
            error.add_note(f"worker's stderr:\n{self.stderr()}")
        self._stderr.close()

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode()

    def send(self, command: Command) -> None:
        self.socket.sendall(encode(command))

    def next(self) -> Report:
        """The next report, whose part in any answer is noted. EOFError when the process ended."""
        while not self._unread:
            data = self.socket.recv(1 << 18)
            if not data:
                raise EOFError(f"the worker ended: {self.process.wait(TIMEOUT_S)}")
            self._unread += self._reader.feed(data)  # pyright: ignore[reportOperatorIssue]
        report = self._unread.pop(0)
        if isinstance(report, Step):
            self._note(report)
        elif isinstance(report, Progress):
            self.progress.append(report)
        return report

    def wait_for(self, kind: type[R], when: Callable[[R], bool] = lambda _: True) -> R:
        while True:
            report = self.next()
            if isinstance(report, kind) and when(report):
                return report

    def wait_until(self, when: Callable[[], bool]) -> None:
        while not when():
            self.next()

    def wait_for_end(self) -> int:
        """Read until the process has ended; its exit status."""
        try:
            while True:
                self.next()
        except (EOFError, ConnectionResetError):
            return self.process.wait(TIMEOUT_S)

    def _note(self, step: Step) -> None:
        self.steps += 1
        for started in step.started:
            answer = self.answers[started.request]
            assert answer.started is None
            answer.started = started
        for delta in step.deltas:
            answer = self.answers[delta.request]
            assert not answer.is_over
            assert answer.started is not None
            assert delta.text
            answer.deltas.append(delta)
        for ended in (*step.finished, *step.failed):
            answer = self.answers[ended.request]
            assert not answer.is_over, "a request ends once"
            if isinstance(ended, Finished):
                answer.finished = ended
            else:
                assert isinstance(ended, Failed)
                answer.fault = ended.fault

    def new_op(self) -> int:
        self._last_id += 1
        return self._last_id

    def load(self, name: str = "tiny", path: str = TINY, **params: Any) -> Loaded:
        reply = self.try_load(name, path, **params)
        assert isinstance(reply, Loaded), reply
        return reply

    def try_load(self, name: str, path: str, **params: Any) -> Loaded | LoadFailed:
        op = self.new_op()
        self.send(Load(op, name, path, EngineParams(**params)))
        reply = self.wait_for((Loaded, LoadFailed), lambda r: r.op == op)  # pyright: ignore
        assert isinstance(reply, Loaded | LoadFailed)
        return reply

    def unload(self, name: str) -> None:
        op = self.new_op()
        self.send(Unload(op, name))
        self.wait_for(Unloaded, lambda r: r.op == op)

    def start(
        self,
        prompt: str,
        *,
        model: str = "tiny",
        sampling: Sampling = GREEDY,
        max_tokens: int | None = 200,
        stop: Iterable[str] = (),
    ) -> Answer:
        request = self.new_op()
        answer = self.answers[request] = Answer(request)
        self.send(Generate(request, model, prompt, sampling, max_tokens, tuple(stop)))
        return answer

    def cancel(self, answer: Answer) -> None:
        self.send(Cancel(answer.request))

    def finish(self, *answers: Answer) -> None:
        self.wait_until(lambda: all(answer.is_over for answer in answers))

    def ask(self, prompt: str, **options) -> Answer:
        answer = self.start(prompt, **options)
        self.finish(answer)
        return answer

    def shut_down(self) -> int:
        self.send(Shutdown())
        return self.wait_for_end()

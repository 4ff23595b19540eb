"""The control plane of a worker: reads commands, starts and ends models, reports progress.

Runs on the main thread and never waits for an engine.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec

from cortex_core.errors import (
    Conflict,
    CortexError,
    Fault,
    InternalError,
    ModelLoading,
    ModelNotFound,
    Unavailable,
)
from cortex_core.wire.ipc import (
    Ask,
    Cancel,
    Command,
    Detokenize,
    Embed,
    Failed,
    Generate,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Pause,
    Progress,
    Rank,
    Reader,
    Resume,
    Shutdown,
    Step,
    Tokenize,
    Unload,
    Unloaded,
)
from neuron.models.kind import check_kind
from neuron.worker import llama
from neuron.worker.codec import Codec
from neuron.worker.embedding import EmbeddingEngine
from neuron.worker.engine import Engine
from neuron.worker.host_cache import HostCache, space_of
from neuron.worker.load import LoadedModel, LoadedPooler, load, resident_bytes
from neuron.worker.outbox import Outbox
from neuron.worker.tokenizing import Tokenizing
from neuron.worker.vocabulary import Vocabularies
from neuron.worker.wait_policy import WaitPolicy

__all__ = ["Worker"]

_LOAD_PROGRESS_EVERY_S = 0.1
_PARKING_S = 20.0
_EXIT_BROKEN = 70  # EX_SOFTWARE


class Worker:
    """One worker process: its socket, its device, its models."""

    def __init__(
        self,
        sock: socket.socket,
        device: str,
        *,
        extra_kernels: bool = True,
        report_every_s: float = 1.0,
        restore: str = "",
    ) -> None:
        self._socket = sock
        self.device = device
        self._extra_kernels = extra_kernels
        self._report_every_s = report_every_s
        self._restore = restore
        self.outbox = Outbox(sock)
        self.host = HostCache()
        self.vocabularies = Vocabularies()
        self.wait_policy = WaitPolicy(llama.openmp())
        self._models: dict[str, _Model] = {}
        self.loading = threading.Lock()
        """One load at a time: what a load adds to the memory held is then its own."""
        self._is_terminating = False

    def run(self) -> NoReturn:
        """Serve until the parent says Shutdown or is gone, or SIGTERM and nothing in flight."""
        llama.start(extra_kernels=self._extra_kernels)
        if self._restore:
            self.host.restore(Path(self._restore))
        version, system = llama.versions()
        self.outbox.send(Hello(os.getpid(), version, system))
        wake = self._catch_sigterm()
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        ready.register(wake, select.POLLIN)
        reader = Reader(Command)  # pyright: ignore[reportArgumentType]
        due = time.monotonic()
        while True:
            wait_s = max(due - time.monotonic(), 0.0)
            events = dict(
                ready.poll(1000 * (min(wait_s, 0.05) if self._is_terminating else wait_s))
            )
            if wake in events:
                os.read(wake, 64)
                self._is_terminating = True
            if self._socket.fileno() in events:
                self._read(reader)
            if self._is_terminating and self._is_idle():
                self.exit(0)
            if time.monotonic() >= due:
                due = time.monotonic() + self._report_every_s
                self._report_progress()

    def _catch_sigterm(self) -> int:
        """A service manager sends SIGTERM to every process of the service at once, and the parent
        may still be draining: end when nothing is in flight. SIGINT is the parent's alone."""
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        return read_end

    def _is_idle(self) -> bool:
        return all(model.is_idle for model in list(self._models.values()))

    def _read(self, reader: Reader) -> None:
        try:
            data = self._socket.recv(1 << 18, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.exit(0)  # the parent is gone
        try:
            for command in reader.feed(data):
                self._handle(command)  # pyright: ignore[reportArgumentType]
        except (ValueError, msgspec.DecodeError) as error:
            self.die(f"unreadable frame from the parent: {error}")

    def _handle(self, command: Command) -> None:
        match command:
            case Generate() | Embed() | Rank() | Tokenize() | Detokenize():
                self._ask(command)
            case Cancel():
                for model in list(self._models.values()):  # whose it is, each engine knows
                    model.cancel(command)
            case Pause() | Resume():
                for model in list(self._models.values()):
                    model.pace(command)
            case Load():
                self._load(command)
            case Unload():
                model = self._models.get(command.model)
                if model is None:
                    self.outbox.send(Unloaded(command.op, command.model))
                else:
                    model.unload(command.op)
            case Shutdown():
                if command.save_to:
                    self._save(command.save_to)
                self.exit(0)

    def _ask(self, command: Ask) -> None:
        model = self._models.get(command.model)
        try:
            if model is None or model.is_leaving:
                raise ModelNotFound(f"model {command.model!r} is not loaded on {self.device}")
            model.ask(command)
        except CortexError as error:
            failed = Failed(command.request, error.fault)
            self.outbox.send(Step(command.model, failed=[failed]))

    def _load(self, command: Load) -> None:
        if command.model in self._models:
            fault = Conflict(f"model {command.model!r} is already here").fault
            self.outbox.send(LoadFailed(command.op, command.model, fault))
            return
        model = self._models[command.model] = _Model(self, command)
        model.start()

    def forget(self, name: str) -> None:
        """The model's thread has freed everything."""
        del self._models[name]

    def _save(self, folder: str) -> None:
        """Leave what is cached to the next worker. An engine that hangs leaves nothing."""
        models = list(self._models.values())
        for model in models:
            model.stop()
        for model in models:
            model.join(_PARKING_S)
        self.host.save(Path(folder))

    def _report_progress(self) -> None:
        engines = [model.engine for model in list(self._models.values())]
        loads = [engine.state() for engine in engines if engine is not None]
        shares_cores = self.wait_policy.shares_cores
        self.outbox.send(Progress(resident_bytes(), loads, shares_cores))

    def exit(self, code: int) -> NoReturn:
        """End now. Threads inside llama.cpp are not waited for: one of them may be hung."""
        self.outbox.drain(0.2)
        os._exit(code)

    def die(self, message: str) -> NoReturn:
        sys.stderr.write(f"worker {self.device}: {message}\n")
        sys.stderr.flush()
        self.exit(_EXIT_BROKEN)


class _Model(threading.Thread):
    """A model from Load to Unload, on a thread of its own, which is also its engine's."""

    def __init__(self, worker: Worker, command: Load) -> None:
        super().__init__(name=command.model, daemon=True)
        self._worker = worker
        self._command = command
        self._unload_ops: list[int] = []
        self._leaving = threading.Lock()
        self._has_left = False
        self._reported_at = 0.0
        self.engine: Engine | EmbeddingEngine | None = None
        self._tokenizing: Tokenizing | None = None

    def ask(self, command: Ask) -> None:
        """Hand a request to whoever answers it. Raises ModelLoading, and InvalidRequest for what
        a model of this kind cannot do."""
        engine, tokenizing = self.engine, self._tokenizing
        if engine is None or tokenizing is None:
            raise ModelLoading(f"model {command.model!r} is still loading on {self._worker.device}")
        if isinstance(command, Tokenize | Detokenize):
            tokenizing.submit(command)
        elif isinstance(engine, EmbeddingEngine):
            check_kind(command, engine.kind)
            assert isinstance(command, Embed | Rank)
            engine.submit(command)
        else:
            check_kind(command, "generate")
            assert isinstance(command, Generate)
            engine.submit(command)

    def cancel(self, command: Cancel) -> None:
        if self.engine is not None:
            self.engine.submit(command)
        if self._tokenizing is not None:
            self._tokenizing.submit(command)

    def pace(self, command: Pause | Resume) -> None:
        """Only generations go on for so long that they can be paused."""
        if isinstance(self.engine, Engine):
            self.engine.submit(command)

    @property
    def is_leaving(self) -> bool:
        return bool(self._unload_ops)

    @property
    def is_idle(self) -> bool:
        engine, tokenizing = self.engine, self._tokenizing
        is_idle = tokenizing is None or tokenizing.is_idle
        return is_idle and (engine is None or engine.is_idle)

    def unload(self, op: int) -> None:
        with self._leaving:
            has_left = self._has_left  # since it was looked up
            if not has_left:
                self._unload_ops.append(op)
        if has_left:
            self._worker.outbox.send(Unloaded(op, self._command.model))
        else:
            self.stop()

    def stop(self) -> None:
        """End the engine, which parks what it has cached."""
        if (engine := self.engine) is not None:
            engine.stop(self._unloaded_fault())

    def _unloaded_fault(self) -> Fault:
        return Unavailable(f"model {self._command.model!r} was unloaded meanwhile").fault

    def run(self) -> None:
        try:
            with llama.log_to(self._command.model):
                self._load_and_serve()
        except BaseException as error:
            traceback.print_exception(error)
            self._worker.die(f"{self._command.model}: {error!r}")

    def _load_and_serve(self) -> None:
        worker, command = self._worker, self._command
        fault: Fault | None = None
        try:
            with worker.loading:
                loaded = load(
                    command.path,
                    command.params,
                    device=worker.device,
                    vocabularies=worker.vocabularies,
                    parked_bytes=worker.host.all_bytes,
                    on_progress=self._on_progress,
                )
        except CortexError as error:
            fault = error.fault
        except Exception as error:
            traceback.print_exception(error)
            fault = InternalError(f"cannot load {command.path}: {error!r}").fault
        else:
            emit = worker.outbox.send
            tokenizing = Tokenizing(command.model, Codec(loaded.model.vocabulary), emit)
            engine = self._engine_for(loaded)
            self._tokenizing, self.engine = tokenizing, engine
            worker.outbox.send(Loaded(command.op, command.model, loaded.info))
            if self.is_leaving:
                engine.stop(self._unloaded_fault())
            engine.run()
            tokenizing.close(self._unloaded_fault())
            engine.close()
        worker.forget(command.model)
        if fault is not None:
            worker.outbox.send(LoadFailed(command.op, command.model, fault))
        with self._leaving:
            self._has_left = True
        for op in self._unload_ops:
            worker.outbox.send(Unloaded(op, command.model))

    def _engine_for(self, loaded: LoadedModel | LoadedPooler) -> Engine | EmbeddingEngine:
        name, worker = self._command.model, self._worker
        if isinstance(loaded, LoadedPooler):
            return EmbeddingEngine(
                name,
                loaded,
                emit=worker.outbox.send,
                die=worker.die,
                wait_policy=worker.wait_policy,
            )
        params = self._command.params
        worker.host.limit(params.host_cache_mb * 2**20)
        return Engine(
            name,
            loaded,
            emit=worker.outbox.send,
            die=worker.die,
            host=worker.host,
            space=space_of(loaded.files, params),
            wait_policy=worker.wait_policy,
        )

    def _on_progress(self, fraction: float) -> bool:
        """Tell the parent, ten times a second at most and at the end; False gives up."""
        now = time.monotonic()
        if fraction >= 1.0 or now - self._reported_at >= _LOAD_PROGRESS_EVERY_S:
            self._reported_at = now
            self._worker.outbox.send(LoadProgress(self._command.op, fraction))
        return not self.is_leaving

"""Keeps one device's worker process alive and carries out what `worker_policy` decides.

It owns the process, its timers and its streams. It never decides by itself when to restart, what
is hung, or what to load again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence

from cortex_core.errors import CortexError, Fault
from cortex_core.fleet.discovery import DeviceState, WorkerState
from cortex_core.wire import ipc
from neuron import logs
from neuron import worker_policy as policy
from neuron.streams import RequestStream, StreamTable
from neuron.worker_policy import LoadedModel, LoadSpec, WorkerPolicy
from neuron.worker_process import WORKER_COMMAND, WorkerProcess

__all__ = ["OnChange", "Supervisor"]

_log = logs.get(__name__)
_STOP_S = 5.0  # from the Shutdown frame to SIGKILL


OnChange = Callable[[bool], None]
"""Whom to tell of a change. True: a phase has changed; False: only counts or progress."""


class Supervisor:
    def __init__(
        self,
        device: DeviceState,
        limits: policy.Limits,
        on_change: OnChange,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self.device = device
        self._policy = WorkerPolicy(device.id, limits)
        self._on_change = on_change
        self._command = command
        self._tick_s = min(1.0, limits.step_timeout_s / 4)
        self._process: WorkerProcess | None = None
        self._streams = StreamTable(self._send, lambda: on_change(False))
        self._next_op = 1
        self._ops: dict[int, str] = {}  # op → model, of the process that runs now
        self._loads: dict[str, asyncio.Future[None]] = {}
        self._unloads: dict[str, asyncio.Future[None]] = {}
        self._restart: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None

    # facts

    @property
    def worker(self) -> WorkerState:
        p = self._policy
        return WorkerState(p.phase, p.pid, p.restarts, p.cause)

    @property
    def models(self) -> dict[str, LoadedModel]:
        """The models of this device by id. To be read, not written."""
        return self._policy.models

    @property
    def open_streams(self) -> int:
        return self._streams.open_count

    def load_of(self, model: str) -> tuple[int, int]:
        """(running, waiting) requests of a model."""
        return self._streams.load(model)

    # requests

    def open(self, ask: ipc.Ask) -> RequestStream:
        """Start a generation on a model that is ready; the caller has checked that it is. The
        request id is chosen here, whatever `ask` says."""
        return self._streams.open(ask)

    def cancel(self, model: str, fault: Fault) -> None:
        """End every running request of a model with `fault`."""
        self._streams.cancel(model, fault)

    # models

    async def load(self, spec: LoadSpec) -> None:
        """Until the model is ready. Raises the CortexError the load failed with. Ends at the
        latest with the worker: one that falls silent is killed."""
        await self._ask(self._loads, spec.model, policy.LoadWanted(spec))

    async def unload(self, model: str) -> None:
        """Until the model is gone; no request of it may be running."""
        await self._ask(self._unloads, model, policy.UnloadWanted(model))

    def forget(self, model: str) -> None:
        """Drop what is left of a model that has failed here."""
        self._feed(policy.UnloadWanted(model))

    async def _ask(
        self, table: dict[str, asyncio.Future[None]], model: str, event: policy.Event
    ) -> None:
        done = table[model] = asyncio.get_running_loop().create_future()
        self._feed(event)
        try:
            await done
        finally:
            if table.get(model) is done:
                del table[model]

    # life

    def start(self) -> None:
        self._feed(policy.Begun(time.monotonic()))
        self._ticker = asyncio.create_task(self._tick(), name=f"tick {self.device.id}")

    async def stop(self) -> None:
        """End the worker: a Shutdown frame, `_STOP_S` to obey, then SIGKILL."""
        if self._restart is not None:
            self._restart.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self._feed(policy.StopWanted())
        await asyncio.gather(*self._tasks, return_exceptions=True)  # a start in progress
        process = self._process
        if process is not None:
            process.send(ipc.Shutdown())
            try:
                await asyncio.wait_for(process.ended(), _STOP_S)
            except TimeoutError:
                process.kill()
                await process.ended()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            self._feed(policy.Ticked(time.monotonic()))

    # stimuli

    def _feed(self, event: policy.Event) -> None:
        before = (self.worker, {name: m.phase for name, m in self.models.items()})
        for instruction in self._policy.handle(event):
            self._carry_out(instruction)
        after = (self.worker, {name: m.phase for name, m in self.models.items()})
        if before != after:
            self._on_change(True)
        elif isinstance(event, policy.Advanced):
            self._on_change(False)

    def _reported(self, report: ipc.Report) -> None:
        match report:
            case ipc.Step():
                self._streams.dispatch(report)
            case ipc.Progress():
                self._feed(policy.Reported(time.monotonic(), report))
            case ipc.LoadProgress():
                if model := self._ops.get(report.op):
                    self._feed(policy.Advanced(model, report.fraction))
            case ipc.Loaded():
                self._ops.pop(report.op, None)
                self._feed(policy.Succeeded(report.model, report.info))
            case ipc.LoadFailed():
                self._ops.pop(report.op, None)
                _log.error("load failed", model=report.model, cause=report.fault.message)
                self._feed(policy.Refused(report.model, report.fault))
            case ipc.Unloaded():
                self._ops.pop(report.op, None)
                self._feed(policy.Unloaded(report.model))
            case ipc.Hello():
                _log.info(
                    "worker ready",
                    device=self.device.id,
                    pid=report.pid,
                    llama_cpp=report.llama_cpp,
                    system=report.system,
                )
                self._feed(policy.Greeted(time.monotonic()))

    def _exited(self, how: str, stderr: tuple[str, ...]) -> None:
        self._process = None
        self._ops.clear()
        self._feed(policy.Exited(time.monotonic(), how, stderr))
        if self._policy.phase == "failed":
            _log.error("device given up", device=self.device.id, cause=self._policy.cause)

    # instructions

    def _carry_out(self, instruction: policy.Instruction) -> None:
        match instruction:
            case policy.Spawn():
                self._own(self._spawn())
            case policy.Kill():
                _log.error("killing worker", device=self.device.id, cause=self._policy.cause)
                if self._process is not None:
                    self._process.kill()
            case policy.RestartAfter():
                _log.error(
                    "worker lost",
                    device=self.device.id,
                    cause=self._policy.cause,
                    restart_in_s=instruction.delay_s,
                )
                self._restart = asyncio.get_running_loop().call_later(
                    instruction.delay_s,
                    lambda: self._feed(policy.RestartDue(time.monotonic())),
                )
            case policy.SendLoad():
                spec = instruction.spec
                self._send(ipc.Load(self._op(spec.model), spec.model, spec.path, spec.params))
            case policy.SendUnload():
                self._send(ipc.Unload(self._op(instruction.model), instruction.model))
            case policy.EndRequests():
                self._streams.fail(instruction.fault)
            case policy.ConcludeLoad():
                _settle(self._loads.get(instruction.model), instruction.fault)
            case policy.ConcludeUnload():
                _settle(self._unloads.get(instruction.model), None)

    async def _spawn(self) -> None:
        try:
            process = await WorkerProcess.start(
                self.device, self._reported, self._exited, self._command
            )
        except OSError as error:
            self._exited(f"could not be started: {error}", ())
            return
        self._process = process
        self._feed(policy.Spawned(time.monotonic(), process.pid))
        _log.info("worker started", device=self.device.id, pid=process.pid)

    def _send(self, command: ipc.Command) -> None:
        if self._process is not None:
            self._process.send(command)

    def _op(self, model: str) -> int:
        op = self._next_op
        self._next_op += 1
        self._ops[op] = model
        return op

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _settle(done: asyncio.Future[None] | None, fault: Fault | None) -> None:
    if done is None or done.done():
        return
    if fault is None:
        done.set_result(None)
    else:
        done.set_exception(CortexError.from_fault(fault))

"""Keeps one device's worker process alive and carries out what `worker_policy` decides.

It owns the process, its timers and its streams. It never decides by itself when to restart, what
is hung, or what to load again.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from cortex_core.errors import Conflict, CortexError, Fault
from cortex_core.fleet.discovery import DeviceState, WorkerState
from cortex_core.wire import ipc
from neuron import logs
from neuron import worker_events as events
from neuron.poison import Suspects, fingerprint
from neuron.pulse import Pulse
from neuron.streams import RequestStream, StreamTable, Tally
from neuron.worker_events import LoadSpec
from neuron.worker_policy import Limits, LoadedModel, WorkerPolicy
from neuron.worker_process import WORKER_COMMAND, Exit, WorkerProcess

__all__ = ["OnChange", "Supervisor"]

_log = logs.get(__name__)
_STOP_S = 5.0  # from the Shutdown frame to SIGKILL


OnChange = Callable[[bool], None]
"""Whom to tell of a change. True: a phase has changed; False: only counts or progress."""


class Supervisor:
    def __init__(
        self,
        device: DeviceState,
        limits: Limits,
        on_change: OnChange,
        command: Sequence[str] = WORKER_COMMAND,
        suspects: Suspects | None = None,
    ) -> None:
        self.device = device
        self._policy = WorkerPolicy(device.id, limits)
        self._pulse = Pulse()
        self._tell = on_change
        self._command = command
        self._limits = limits
        self._suspects = Suspects() if suspects is None else suspects
        self._process: WorkerProcess | None = None
        self._streams = StreamTable(self._send, lambda: self._on_change(False), self._answered)
        self._last_report = (0.0, ipc.Progress(0, []))
        self._next_op = 1
        self._ops: dict[int, str] = {}  # op → model, of the process that runs now
        self._loads: dict[str, asyncio.Future[None]] = {}
        self._unloads: dict[str, asyncio.Future[None]] = {}
        self._restarts: dict[str, asyncio.Future[None]] = {}  # of this device: one at most
        self._saved: Path | None = None  # where a worker that leaves puts its sequences
        self._restart: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None

    def _on_change(self, urgent: bool) -> None:
        self._pulse.beat()
        self._tell(urgent)

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

    @property
    def ends(self) -> Counter[str]:
        """How often a process of this device has ended, by why. To be read, not written."""
        return self._policy.ends

    @property
    def tallies(self) -> dict[str, Tally]:
        """Prompt tokens by model. To be read, not written."""
        return self._streams.tallies

    @property
    def last_report(self) -> tuple[float, ipc.Progress]:
        """(seconds since, what) the worker that runs has last reported."""
        at, progress = self._last_report
        return time.monotonic() - at, progress

    def load_of(self, model: str) -> tuple[int, int]:
        """(running, waiting) requests of a model."""
        return self._streams.load(model)

    # requests

    def open(self, ask: ipc.Ask) -> RequestStream:
        """Start a request on a model that is ready; the caller has checked that it is. The request
        id is chosen here, whatever `ask` says. Raises PoisonPrompt or RequestTooLarge."""
        if not self._suspects:
            return self._streams.open(ask)
        now, prompt = time.monotonic(), self._fingerprint(ask)
        self._suspects.check(prompt, now)
        return self._streams.open(ask, is_suspect=self._suspects.is_suspect(prompt, now))

    def cancel(self, model: str, fault: Fault) -> None:
        """End every running request of a model with `fault`."""
        self._streams.cancel(fault, model)

    def _max_wait_s(self, model: str) -> float:
        held = self.models.get(model)
        return held.spec.params.max_wait_s if held else 0.0

    def _fingerprint(self, ask: ipc.Ask) -> bytes:
        held = self.models.get(ask.model)
        return fingerprint(ask, held.info.files if held and held.info else ())

    def _answered(self, ask: ipc.Ask) -> None:
        self._suspects.clear(self._fingerprint(ask))

    # models

    async def load(self, spec: LoadSpec) -> None:
        """Until the model is ready. Raises the CortexError the load failed with. Ends at the
        latest with the worker: one that falls silent is killed."""
        await self._ask(self._loads, spec.model, events.LoadWanted(spec))

    async def unload(self, model: str) -> None:
        """Until the model is gone; no request of it may be running."""
        await self._ask(self._unloads, model, events.UnloadWanted(model))

    def forget(self, model: str) -> None:
        """Drop what is left of a model that has failed here."""
        self._feed(events.UnloadWanted(model))

    # a planned restart

    async def restart(self, drain_s: float) -> None:
        """Until a new process has all the models of this one. Raises Conflict unless the worker
        was ready, and UpstreamFailed if it crashed on the way.

        What runs may go on for `drain_s`; then it ends with a fault. A load or unload in progress
        is waited for: the watch over hung workers is what limits that.
        """
        if self._restarts:
            raise Conflict(f"the worker of {self.device.id} is restarting as planned")
        draining = asyncio.create_task(self._drain(drain_s), name=f"drain {self.device.id}")
        try:
            await self._ask(self._restarts, self.device.id, events.RestartWanted())
        finally:
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
            await self._remove_saved()

    async def _drain(self, limit_s: float) -> None:
        """Tell the policy once nothing is going on in the worker any more."""

        def is_quiet() -> bool:
            return self._streams.running_count == 0 and self._policy.is_settled

        try:
            async with asyncio.timeout(limit_s):
                await self._pulse.until(is_quiet)
        except TimeoutError:
            why = (
                f"{self.device.id} is restarted as planned, and drain_s ({limit_s:g} s) has passed"
            )
            self._streams.cancel(Fault("upstream_failed", why))
            await self._pulse.until(is_quiet)
        self._feed(events.Quiesced(time.monotonic()))

    async def _remove_saved(self) -> None:
        """The sequences that were handed over; they hold what clients have said."""
        folder, self._saved = self._saved, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _ask(
        self, table: dict[str, asyncio.Future[None]], model: str, event: events.Event
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
        self._feed(events.Begun(time.monotonic()))
        self._ticker = asyncio.create_task(self._tick(), name=f"tick {self.device.id}")

    async def stop(self) -> None:
        """End the worker: a Shutdown frame, `_STOP_S` to obey, then SIGKILL."""
        if self._restart is not None:
            self._restart.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self._feed(events.StopWanted())
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
            await asyncio.sleep(self._limits.tick_s)
            self._streams.expire(self._max_wait_s)
            self._feed(events.Ticked(time.monotonic(), self._stderr))

    # stimuli

    def _feed(self, event: events.Event) -> None:
        before = (self.worker, {name: m.phase for name, m in self.models.items()})
        for instruction in self._policy.handle(event):
            self._carry_out(instruction)
        after = (self.worker, {name: m.phase for name, m in self.models.items()})
        if before != after:
            self._on_change(True)
        elif isinstance(event, events.Advanced):
            self._on_change(False)

    def _reported(self, report: ipc.Report) -> None:
        match report:
            case ipc.Step():
                self._streams.dispatch(report)
            case ipc.Progress():
                now = time.monotonic()
                self._last_report = (now, report)
                self._feed(events.Reported(now, report, self._stderr))
            case ipc.LoadProgress():
                if model := self._ops.get(report.op):
                    self._feed(events.Advanced(model, report.fraction))
            case ipc.Loaded():
                self._ops.pop(report.op, None)
                self._feed(events.Succeeded(report.model, report.info))
            case ipc.LoadFailed():
                self._ops.pop(report.op, None)
                _log.error("load failed", model=report.model, cause=report.fault.message)
                self._feed(events.Refused(report.model, report.fault))
            case ipc.Unloaded():
                self._ops.pop(report.op, None)
                self._feed(events.Unloaded(report.model))
            case ipc.Hello():
                _log.info(
                    "worker ready",
                    device=self.device.id,
                    pid=report.pid,
                    llama_cpp=report.llama_cpp,
                    system=report.system,
                )
                self._feed(events.Greeted(time.monotonic()))

    @property
    def _stderr(self) -> tuple[str, ...]:
        return self._process.stderr if self._process is not None else ()

    def _exited(self, end: Exit) -> None:
        self._process = None
        self._ops.clear()
        self._last_report = (time.monotonic(), ipc.Progress(0, []))
        self._feed(events.Exited(time.monotonic(), *end))
        if self._policy.phase == "failed":
            _log.error("device given up", device=self.device.id, cause=self._policy.cause)

    # instructions

    def _carry_out(self, instruction: events.Instruction) -> None:
        match instruction:
            case events.Spawn():
                self._own(self._spawn(self._saved if instruction.restores else None))
            case events.Kill():
                _log.error("killing worker", device=self.device.id, cause=self._policy.verdict)
                if self._process is not None:
                    self._process.kill()
            case events.RestartAfter():
                _log.error(
                    "worker lost",
                    device=self.device.id,
                    cause=self._policy.cause,
                    restart_in_s=instruction.delay_s,
                )
                self._restart = asyncio.get_running_loop().call_later(
                    instruction.delay_s,
                    lambda: self._feed(events.RestartDue(time.monotonic())),
                )
            case events.SendLoad():
                spec = instruction.spec
                self._send(ipc.Load(self._op(spec.model), spec.model, spec.path, spec.params))
            case events.SendUnload():
                self._send(ipc.Unload(self._op(instruction.model), instruction.model))
            case events.SendShutdown():
                self._saved = Path(tempfile.mkdtemp(prefix="neuron-restart-"))
                _log.info("worker leaves", device=self.device.id, pid=self._policy.pid)
                self._send(ipc.Shutdown(str(self._saved)))
            case events.Blame():
                prompts = map(self._fingerprint, self._streams.in_flight(instruction.model))
                self._suspects.blame(time.monotonic(), prompts, instruction.cause)
            case events.EndRequests():
                self._streams.fail(instruction.fault)
            case events.ConcludeLoad():
                _settle(self._loads.get(instruction.model), instruction.fault)
            case events.ConcludeUnload():
                _settle(self._unloads.get(instruction.model), None)
            case events.ConcludeRestart():
                _settle(self._restarts.get(self.device.id), instruction.fault)

    async def _spawn(self, restore: Path | None) -> None:
        try:
            process = await WorkerProcess.start(
                self.device,
                self._reported,
                self._exited,
                self._command,
                report_every_s=self._limits.report_every_s,
                restore=restore,
            )
        except OSError as error:
            self._exited(Exit(f"could not be started: {error}", "unstartable"))
            return
        self._process = process
        self._feed(events.Spawned(time.monotonic(), process.pid))
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

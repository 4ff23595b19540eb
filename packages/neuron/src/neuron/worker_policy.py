"""One device's worker as values: events in, instructions out. Pure; every time is passed in.

It decides when a worker starts, when it is hung, when it may be started again, when the device is
given up, which models a new worker must load, and whether what it computed is to blame for its end.
It never touches a process: `supervisor` carries out what it says. The worker's phases, and what
moves them::

    starting ──Greeted──► ready ──Exited, hung──► restarting ──RestartDue, Greeted──► ready
                                       │
                                       └─ too many crashes ──► failed        StopWanted ──► stopped

A model's phases on this device: loading → ready → unloading; recovering while its worker is being
replaced; failed. (That a ready model drains is the registry's affair: it is about requests.)

A planned restart is no crash. Its models are recovering from the moment it is wanted, so that
nothing new begins; what runs ends by itself (Quiesced), the worker saves what it has cached and
ends (SendShutdown, Exited), and a new one takes over (Spawn)::

    RestartWanted ──► draining ──Quiesced──► leaving ──Exited──► returning ──all loaded──► over
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from cortex_core.errors import Fault
from cortex_core.fleet.discovery import ModelPhase, WorkerPhase
from cortex_core.wire import ipc
from neuron.worker_events import (
    Advanced,
    Begun,
    Blame,
    ConcludeLoad,
    ConcludeRestart,
    ConcludeUnload,
    EndRequests,
    Event,
    Exited,
    Greeted,
    Instruction,
    Kill,
    LoadSpec,
    LoadWanted,
    Quiesced,
    Refused,
    Reported,
    RestartAfter,
    RestartDue,
    RestartWanted,
    SendLoad,
    SendShutdown,
    SendUnload,
    Spawn,
    Spawned,
    StopWanted,
    Succeeded,
    Ticked,
    Unloaded,
    UnloadWanted,
)

__all__ = ["Limits", "LoadedModel", "WorkerPolicy"]

# What a process brings upon itself, besides ending with a code of its own. Any other signal comes
# from outside: SIGKILL from an operator or the out-of-memory killer, SIGTERM from a service
# manager.
_OWN_FAULTS = frozenset(
    {"sigsegv", "sigabrt", "sigbus", "sigfpe", "sigill", "sigtrap", "sigsys", "garbage"}
)


class Limits(msgspec.Struct, frozen=True):
    """Seconds. The back-off doubles with each crash inside the window."""

    step_timeout_s: float = 120.0
    hello_timeout_s: float = 60.0
    backoff_first_s: float = 0.2
    backoff_most_s: float = 30.0
    crashes_to_fail: int = 4
    crash_window_s: float = 600.0
    deaths_to_drop: int = 2  # a model in whose reload the worker died this often stays failed
    leave_timeout_s: float = 60.0  # to save the cached sequences in a planned restart

    @property
    def tick_s(self) -> float:
        """How often a Ticked is due."""
        return min(1.0, self.step_timeout_s / 8)

    @property
    def report_every_s(self) -> float:
        """How often a worker is to report: so often that a hung one has missed several reports."""
        return min(1.0, self.step_timeout_s / 8)

    @property
    def silence_s(self) -> float:
        """A worker silent for longer is stopped or hung, whether or not it has work: its reports
        come from a thread that waits for nothing. One tick short of the step timeout, so that it
        is found within it."""
        return self.step_timeout_s - self.tick_s


class LoadedModel:
    """A model of this device. `info` is what its last successful load measured."""

    __slots__ = ("deaths", "fault", "info", "leaves", "phase", "progress", "spec")

    def __init__(self, spec: LoadSpec) -> None:
        self.spec = spec
        self.phase: ModelPhase = "loading"
        self.info: ipc.ModelInfo | None = None
        self.fault: Fault | None = None
        self.progress: float | None = 0.0
        self.deaths = 0
        self.leaves = False  # an unload waits for the load in progress


class WorkerPolicy:
    def __init__(self, device: str, limits: Limits) -> None:
        self.phase: WorkerPhase = "starting"
        self.pid: int | None = None
        self.restarts = 0
        self.cause: str | None = None
        self.models: dict[str, LoadedModel] = {}
        self._device = device
        self._limits = limits
        self._queue: list[str] = []  # models to be loaded, in order
        self._loading: str | None = None  # one load at a time: a crash then has one suspect
        self._crashes: list[float] = []
        self._verdict: str | None = None  # why we killed the process that has yet to exit
        self._restart: Literal["draining", "leaving", "returning"] | None = None  # a planned one
        self._left_at = 0.0  # when it was told to save and end
        self.ends: Counter[str] = Counter()
        """How often a process of this device has ended, by why: a word from a short list."""
        self._alive_at = 0.0  # last sign of life, or the spawn
        self._ticked_at: float | None = None

    def handle(self, event: Event) -> list[Instruction]:
        """What is to be done now, in order."""
        name = "_on_" + type(event).__name__.lower()
        return getattr(self, name)(event)

    @property
    def verdict(self) -> str | None:
        """Why the process that has yet to exit is being killed."""
        return self._verdict

    @property
    def is_settled(self) -> bool:
        """No load or unload is in progress in the worker."""
        return self._loading is None and all(m.phase != "unloading" for m in self.models.values())

    # the process

    def _on_begun(self, event: Begun) -> list[Instruction]:
        self._alive_at = event.at
        return [Spawn()]

    def _on_spawned(self, event: Spawned) -> list[Instruction]:
        self.pid = event.pid
        self._alive_at = event.at
        return []

    def _on_greeted(self, event: Greeted) -> list[Instruction]:
        if self._verdict is not None or self.phase not in ("starting", "restarting"):
            return []
        self.phase = "ready"
        self._alive_at = event.at
        return self._load_next()

    def _on_restartdue(self, event: RestartDue) -> list[Instruction]:
        if self.phase != "restarting":
            return []
        self._alive_at = event.at
        self.restarts += 1
        return [Spawn()]

    def _on_reported(self, event: Reported) -> list[Instruction]:
        self._alive_at = event.at
        limit_s = self._limits.step_timeout_s
        for model in event.progress.models:
            if model.step_s > limit_s and self._verdict is None:
                why = f"hung: a step of {model.model!r} has run {model.step_s:.1f} s"
                verdict = f"{why} (step_timeout_s = {limit_s:g})"
                return self._condemn(event, "hung_step", verdict, suspect=model.model)
        return []

    def _on_ticked(self, event: Ticked) -> list[Instruction]:
        """Silence is only the worker's fault while we ourselves were running: after a suspended
        host or a stopped parent, the lost time counts for nobody."""
        last, self._ticked_at = self._ticked_at, event.at
        if last is not None and event.at - last > self._limits.step_timeout_s / 2:
            self._alive_at = event.at
        if self._verdict is not None or self.pid is None:
            return []
        limits = self._limits
        if self._restart == "leaving":
            if event.at - self._left_at <= limits.leave_timeout_s:
                return []
            limit_s = limits.leave_timeout_s
            self._verdict = self._tell(f"did not leave within {limit_s:g} s", self.pid, ())
            return [Kill()]
        silent_s = event.at - self._alive_at
        if self.phase == "ready" and silent_s > limits.silence_s:
            limit = f"step_timeout_s = {limits.step_timeout_s:g}"
            verdict = f"hung: no sign of life for {silent_s:.1f} s ({limit})"
            return self._condemn(event, "hung_silent", verdict)
        hello_s = limits.hello_timeout_s
        if self._restart == "returning":
            hello_s += limits.leave_timeout_s  # to take over takes as long as to save did
        if self.phase in ("starting", "restarting") and silent_s > hello_s:
            return self._condemn(event, "no_hello", f"did not come up within {silent_s:.0f} s")
        return []

    def _on_exited(self, event: Exited) -> list[Instruction]:
        verdict, self._verdict = self._verdict, None
        pid, self.pid = self.pid, None
        if self.phase == "stopped":
            return []
        if self._restart == "leaving":
            return self._return(event)
        out: list[Instruction] = []
        if verdict is None:
            cause = self._tell(event.how, pid, event.stderr)
            out += self._lose(event.at, event.kind, cause, blames=_is_own_fault(event.kind))
        elif event.stderr:
            self.cause = f"{verdict}{_tail(event.stderr)}"
        self._crashes = [t for t in self._crashes if event.at - t < self._limits.crash_window_s]
        count = len(self._crashes)
        if count >= self._limits.crashes_to_fail:
            return out + self._give_up(count)
        delay_s = self._limits.backoff_first_s * 2 ** max(count - 1, 0)
        return [*out, RestartAfter(min(delay_s, self._limits.backoff_most_s))]

    def _condemn(
        self, event: Reported | Ticked, kind: str, why: str, suspect: str | None = None
    ) -> list[Instruction]:
        """Kill a worker that lives but does not work. Its requests end now: a process stuck in the
        driver may take forever to die. Only a step that never ends is the fault of what it
        computes; a silent process was stopped, or its host was."""
        pid, self.pid = self.pid, None
        self._verdict = self._tell(why, pid, ())
        cause = self._tell(why, pid, event.stderr)
        blames = suspect is not None
        return [Kill(), *self._lose(event.at, kind, cause, blames=blames, suspect=suspect)]

    def _lose(
        self, at: float, kind: str, cause: str, *, blames: bool, suspect: str | None = None
    ) -> list[Instruction]:
        self.phase = "restarting"
        self.cause = cause
        self.ends[kind] += 1
        self._crashes.append(at)
        fault = Fault("upstream_failed", cause)
        out: list[Instruction] = []
        # Where a model was being loaded, that is what most likely failed.
        if blames and (self._loading is None or suspect is not None):
            out.append(Blame(cause, suspect))
        out.append(EndRequests(fault))
        if self._restart is not None:
            self._restart = None
            out.append(ConcludeRestart(fault))
        return out + self._lose_models(fault)

    def _lose_models(self, fault: Fault) -> list[Instruction]:
        out: list[Instruction] = []
        suspect, self._loading = self._loading, None
        for name, model in list(self.models.items()):
            if model.phase == "unloading" or (model.leaves and name == suspect):
                del self.models[name]
                out.append(ConcludeUnload(name))
            elif model.phase == "ready":
                self._recover(name, model, fault)
            elif name == suspect and model.phase == "loading":
                self._fail(model, fault)
                out.append(ConcludeLoad(name, fault))
            elif name == suspect:
                model.deaths += 1
                if model.deaths >= self._limits.deaths_to_drop:
                    self._fail(model, fault)
                else:
                    self._recover(name, model, fault)
        return out

    def _recover(self, name: str, model: LoadedModel, fault: Fault | None) -> None:
        model.phase, model.fault, model.progress = "recovering", fault, None
        self._queue.append(name)

    @staticmethod
    def _fail(model: LoadedModel, fault: Fault) -> None:
        model.phase, model.fault, model.progress = "failed", fault, None

    def _give_up(self, count: int) -> list[Instruction]:
        self.phase = "failed"
        minutes = self._limits.crash_window_s / 60
        self.cause = f"{count} crashes within {minutes:g} minutes; the last: {self.cause}"
        self._queue.clear()
        fault = Fault("upstream_failed", f"device {self._device} has failed: {self.cause}")
        out: list[Instruction] = []
        for name, model in self.models.items():
            if model.phase == "loading":
                out.append(ConcludeLoad(name, fault))
            if model.phase != "failed":
                self._fail(model, fault)
        return out

    def _tell(self, how: str, pid: int | None, stderr: tuple[str, ...]) -> str:
        process = f" (pid {pid})" if pid is not None else ""
        return f"the worker of {self._device}{process} {how}{_tail(stderr)}"

    def _on_stopwanted(self, event: StopWanted) -> list[Instruction]:
        self.phase = "stopped"
        fault = Fault("shutting_down", "the neuron is shutting down")
        out: list[Instruction] = [EndRequests(fault)]
        if self._restart is not None:
            self._restart = None
            out.append(ConcludeRestart(fault))
        for name, model in self.models.items():
            if model.phase == "loading":
                out.append(ConcludeLoad(name, fault))
            elif model.phase == "unloading" or model.leaves:
                out.append(ConcludeUnload(name))
        self.models.clear()
        self._queue.clear()
        return out

    # a planned restart

    def _on_restartwanted(self, event: RestartWanted) -> list[Instruction]:
        if self.phase != "ready" or self._restart is not None:
            what = f"is {self.phase}" if self._restart is None else "is restarting as planned"
            why = f"; {self.cause}" if self.phase == "failed" else ""
            fault = Fault("conflict", f"the worker of {self._device} {what}{why}")
            return [ConcludeRestart(fault)]
        self._restart = "draining"
        for name, model in self.models.items():
            if model.phase == "ready":
                self._recover(name, model, None)
        return []

    def _on_quiesced(self, event: Quiesced) -> list[Instruction]:
        if self._restart != "draining" or not self.is_settled:
            return []
        self._restart, self._left_at = "leaving", event.at
        return [SendShutdown()]

    def _return(self, event: Exited) -> list[Instruction]:
        """The old process has ended. One that did not end well has left nothing to rely on."""
        self._restart = "returning"
        self.phase = "restarting"
        self.restarts += 1
        self.ends["planned"] += 1
        self._alive_at = event.at
        return [Spawn(restores=event.kind == "exit_0")]

    def _is_back(self) -> list[Instruction]:
        if self._restart != "returning" or self.phase != "ready" or self._queue:
            return []
        if self._loading is not None:
            return []
        self._restart = None
        return [ConcludeRestart()]

    # models

    def _on_loadwanted(self, event: LoadWanted) -> list[Instruction]:
        name = event.spec.model
        if self.phase in ("failed", "stopped"):
            cause = self.cause or "stopped"
            fault = Fault("no_capacity", f"device {self._device} has failed: {cause}")
            return [ConcludeLoad(name, fault)]
        self.models[name] = LoadedModel(event.spec)
        self._queue.append(name)
        return self._load_next()

    def _load_next(self) -> list[Instruction]:
        if self._restart in ("draining", "leaving"):
            return []
        if self.phase != "ready" or self._loading is not None or not self._queue:
            return self._is_back()
        self._loading = self._queue.pop(0)
        model = self.models[self._loading]
        model.progress = 0.0
        return [SendLoad(model.spec)]

    def _on_advanced(self, event: Advanced) -> list[Instruction]:
        if event.model == self._loading:
            self.models[event.model].progress = min(max(event.fraction, 0.0), 1.0)
        return []

    def _on_succeeded(self, event: Succeeded) -> list[Instruction]:
        if event.model != self._loading:
            return []
        self._loading = None
        model = self.models[event.model]
        out: list[Instruction] = []
        if model.phase == "loading":
            out.append(ConcludeLoad(event.model))
        model.phase, model.info, model.fault, model.progress = "ready", event.info, None, None
        model.deaths = 0
        if model.leaves:
            model.phase = "unloading"
            out.append(SendUnload(event.model))
        elif self._restart == "draining":
            self._recover(event.model, model, None)
        return out + self._load_next()

    def _on_refused(self, event: Refused) -> list[Instruction]:
        if event.model != self._loading:
            return []
        self._loading = None
        model = self.models[event.model]
        out: list[Instruction] = []
        if model.phase == "loading":
            out.append(ConcludeLoad(event.model, event.fault))
        self._fail(model, event.fault)
        if model.leaves:
            del self.models[event.model]
            out.append(ConcludeUnload(event.model))
        return out + self._load_next()

    def _on_unloadwanted(self, event: UnloadWanted) -> list[Instruction]:
        model = self.models.get(event.model)
        if model is not None and event.model == self._loading:
            model.leaves = True
            return []
        if model is not None and model.phase == "ready":
            model.phase = "unloading"
            return [SendUnload(event.model)]
        if model is not None and model.phase == "unloading":
            return []
        # Nothing of it is in a worker: it waits for one, has failed, or was never here.
        self.models.pop(event.model, None)
        if event.model in self._queue:
            self._queue.remove(event.model)
        return [ConcludeUnload(event.model)]

    def _on_unloaded(self, event: Unloaded) -> list[Instruction]:
        model = self.models.get(event.model)
        if model is None or model.phase != "unloading":
            return []
        del self.models[event.model]
        return [ConcludeUnload(event.model)]


def _is_own_fault(kind: str) -> bool:
    return kind in _OWN_FAULTS or (kind.startswith("exit_") and kind != "exit_0")


def _tail(stderr: tuple[str, ...]) -> str:
    return f"; its last words: {' | '.join(stderr)}" if stderr else ""

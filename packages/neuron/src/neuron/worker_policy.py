"""One device's worker as values: events in, instructions out. Pure; every time is passed in.

It decides when a worker starts, when it is hung, when it may be started again, when the device is
given up, and which models a new worker must load. It never touches a process: `supervisor` carries
out what it says. The worker's phases, and what moves them::

    starting ──Greeted──► ready ──Exited, hung──► restarting ──RestartDue, Greeted──► ready
                                       │
                                       └─ too many crashes ──► failed        StopWanted ──► stopped

A model's phases on this device: loading → ready → unloading; recovering while its worker is being
replaced; failed. (That a ready model drains is the registry's affair: it is about requests.)
"""

from __future__ import annotations

import msgspec

from cortex_core.errors import Fault
from cortex_core.fleet.discovery import ModelPhase, WorkerPhase
from cortex_core.wire import ipc

__all__ = [
    "Advanced",
    "Begun",
    "ConcludeLoad",
    "ConcludeUnload",
    "EndRequests",
    "Event",
    "Exited",
    "Greeted",
    "Instruction",
    "Kill",
    "Limits",
    "LoadSpec",
    "LoadWanted",
    "LoadedModel",
    "Refused",
    "Reported",
    "RestartAfter",
    "RestartDue",
    "SendLoad",
    "SendUnload",
    "Spawn",
    "Spawned",
    "StopWanted",
    "Succeeded",
    "Ticked",
    "UnloadWanted",
    "Unloaded",
    "WorkerPolicy",
]


class Limits(msgspec.Struct, frozen=True):
    """Seconds. The back-off doubles with each crash inside the window."""

    step_timeout_s: float = 120.0
    hello_timeout_s: float = 60.0
    backoff_first_s: float = 0.2
    backoff_most_s: float = 30.0
    crashes_to_fail: int = 4
    crash_window_s: float = 600.0
    deaths_to_drop: int = 2  # a model in whose reload the worker died this often stays failed


class LoadSpec(msgspec.Struct, frozen=True):
    model: str
    path: str
    params: ipc.EngineParams


# events


class Begun(msgspec.Struct, frozen=True):
    at: float


class Spawned(msgspec.Struct, frozen=True):
    at: float
    pid: int


class Greeted(msgspec.Struct, frozen=True):
    at: float


class Exited(msgspec.Struct, frozen=True):
    """`how`: "was killed by SIGKILL", "exited with code 1", "could not be started: …"."""

    at: float
    how: str
    stderr: tuple[str, ...] = ()


class RestartDue(msgspec.Struct, frozen=True):
    at: float


class Reported(msgspec.Struct, frozen=True):
    at: float
    progress: ipc.Progress


class Ticked(msgspec.Struct, frozen=True):
    at: float


class LoadWanted(msgspec.Struct, frozen=True):
    spec: LoadSpec


class Advanced(msgspec.Struct, frozen=True):
    model: str
    fraction: float


class Succeeded(msgspec.Struct, frozen=True):
    model: str
    info: ipc.ModelInfo


class Refused(msgspec.Struct, frozen=True):
    model: str
    fault: Fault


class UnloadWanted(msgspec.Struct, frozen=True):
    model: str


class Unloaded(msgspec.Struct, frozen=True):
    model: str


class StopWanted(msgspec.Struct, frozen=True):
    pass


Event = (
    Begun
    | Spawned
    | Greeted
    | Exited
    | RestartDue
    | Reported
    | Ticked
    | LoadWanted
    | Advanced
    | Succeeded
    | Refused
    | UnloadWanted
    | Unloaded
    | StopWanted
)

# instructions


class Spawn(msgspec.Struct, frozen=True):
    pass


class Kill(msgspec.Struct, frozen=True):
    """End the process now and hear nothing more from it but its exit."""


class RestartAfter(msgspec.Struct, frozen=True):
    delay_s: float


class SendLoad(msgspec.Struct, frozen=True):
    spec: LoadSpec


class SendUnload(msgspec.Struct, frozen=True):
    model: str


class EndRequests(msgspec.Struct, frozen=True):
    fault: Fault


class ConcludeLoad(msgspec.Struct, frozen=True):
    """A wanted load has ended. `fault` None = ready."""

    model: str
    fault: Fault | None = None


class ConcludeUnload(msgspec.Struct, frozen=True):
    model: str


Instruction = (
    Spawn
    | Kill
    | RestartAfter
    | SendLoad
    | SendUnload
    | EndRequests
    | ConcludeLoad
    | ConcludeUnload
)


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
        self._alive_at = 0.0  # last sign of life, or the spawn
        self._ticked_at: float | None = None

    def handle(self, event: Event) -> list[Instruction]:
        """What is to be done now, in order."""
        name = "_on_" + type(event).__name__.lower()
        return getattr(self, name)(event)

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
                return self._condemn(event.at, f"{why} (step_timeout_s = {limit_s:g})")
        return []

    def _on_ticked(self, event: Ticked) -> list[Instruction]:
        """Silence is only the worker's fault while we ourselves were running: after a suspended
        host or a stopped parent, the lost time counts for nobody."""
        last, self._ticked_at = self._ticked_at, event.at
        if last is not None and event.at - last > self._limits.step_timeout_s / 2:
            self._alive_at = event.at
        if self._verdict is not None or self.pid is None:
            return []
        silent_s = event.at - self._alive_at
        if self.phase == "ready" and silent_s > self._limits.step_timeout_s:
            limit = f"step_timeout_s = {self._limits.step_timeout_s:g}"
            return self._condemn(event.at, f"hung: no sign of life for {silent_s:.1f} s ({limit})")
        if self.phase in ("starting", "restarting") and silent_s > self._limits.hello_timeout_s:
            return self._condemn(event.at, f"did not come up within {silent_s:.0f} s")
        return []

    def _on_exited(self, event: Exited) -> list[Instruction]:
        was_condemned, self._verdict = self._verdict is not None, None
        pid, self.pid = self.pid, None
        if self.phase == "stopped":
            return []
        out: list[Instruction] = []
        if not was_condemned:
            out += self._lose(event.at, self._tell(event.how, pid, event.stderr))
        elif event.stderr:
            self.cause = f"{self.cause}{_tail(event.stderr)}"
        self._crashes = [t for t in self._crashes if event.at - t < self._limits.crash_window_s]
        count = len(self._crashes)
        if count >= self._limits.crashes_to_fail:
            return out + self._give_up(count)
        delay_s = self._limits.backoff_first_s * 2 ** max(count - 1, 0)
        return [*out, RestartAfter(min(delay_s, self._limits.backoff_most_s))]

    def _condemn(self, at: float, verdict: str) -> list[Instruction]:
        """Kill a worker that lives but does not work. Its requests end now: a process stuck in the
        driver may take forever to die."""
        pid, self.pid = self.pid, None
        self._verdict = verdict
        return [Kill(), *self._lose(at, self._tell(verdict, pid, ()))]

    def _lose(self, at: float, cause: str) -> list[Instruction]:
        self.phase = "restarting"
        self.cause = cause
        self._crashes.append(at)
        fault = Fault("upstream_failed", cause)
        out: list[Instruction] = [EndRequests(fault)]
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

    def _recover(self, name: str, model: LoadedModel, fault: Fault) -> None:
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
        for name, model in self.models.items():
            if model.phase == "loading":
                out.append(ConcludeLoad(name, fault))
            elif model.phase == "unloading" or model.leaves:
                out.append(ConcludeUnload(name))
        self.models.clear()
        self._queue.clear()
        return out

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
        if self.phase != "ready" or self._loading is not None or not self._queue:
            return []
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


def _tail(stderr: tuple[str, ...]) -> str:
    return f"; its last words: {' | '.join(stderr)}" if stderr else ""

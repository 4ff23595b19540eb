"""The node's models: what is loaded where, what is being loaded or unloaded, who may generate.

It owns operations, single flight and the order of loads and unloads of one model; which worker
holds a model and what happens when that worker dies is the supervisors' affair.
"""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import Coroutine, Mapping
from typing import Any
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from cortex_core.config.neuron import EngineSection
from cortex_core.errors import (
    Conflict,
    CortexError,
    Fault,
    InternalError,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    NoCapacity,
    RateLimitExceeded,
    ShuttingDown,
)
from cortex_core.fleet.discovery import DeviceState, ModelPhase, ModelState, NodeState
from cortex_core.wire import ipc
from neuron import logs
from neuron.models.gguf import GgufHeader, read_header
from neuron.models.kind import check_kind
from neuron.models.operations import OperationRecord, Operations
from neuron.models.placing import Candidate, roomiest
from neuron.models.resolve import Resolver
from neuron.pulse import Pulse
from neuron.state_feed import StateFeed
from neuron.streams import RequestStream
from neuron.supervisor import Supervisor
from neuron.worker_events import LoadSpec

__all__ = ["Registry", "Wanted"]

_log = logs.get(__name__)


class Wanted(msgspec.Struct, frozen=True):
    """What the asker of a load cares about; None = whatever is configured, or already there."""

    device: str | None = None
    context: int | None = None
    parallel: int | None = None


class _Entry:
    """A model that has a place: loading, ready, leaving, or failed there."""

    __slots__ = ("device", "fault", "header", "is_draining", "spec")

    def __init__(self, device: str, spec: LoadSpec, header: GgufHeader | None) -> None:
        self.device = device
        self.spec = spec
        self.header = header
        self.is_draining = False
        self.fault: Fault | None = None  # of a load that no worker knows of


class Registry:
    def __init__(self, name: str, engine: EngineSection, resolver: Resolver) -> None:
        self.name = name
        self.boot = uuid4().hex
        self.is_draining = False
        self._engine = engine
        self._resolver = resolver
        self._supervisors: dict[str, Supervisor] = {}
        self._devices: dict[str, DeviceState] = {}
        self._entries: dict[str, _Entry] = {}
        self._newest: dict[str, tuple[OperationRecord, Wanted]] = {}  # per model
        self._operations = Operations(self.boot)
        self._pulse = Pulse()
        self.feed = StateFeed(self._state)

    # assembly

    def attach(self, supervisors: Mapping[str, Supervisor]) -> None:
        """Give it the devices it may use, in the order they are to be listed."""
        self._supervisors = dict(supervisors)
        self._devices = {s.device.id: s.device for s in supervisors.values()}
        self.changed(True)

    def changed(self, urgent: bool) -> None:
        """A phase (urgent) or mere counts have changed."""
        self._pulse.beat()
        if not self.feed.is_closed:
            self.feed.changed(urgent)

    def read(self, devices: list[DeviceState]) -> None:
        """Fresh readings of the devices."""
        self._devices.update((device.id, device) for device in devices)
        self.changed(False)

    async def drain(self, limit_s: float) -> bool:
        """Admit nothing more and wait until every answer is delivered. False when `limit_s` passed
        first. What still runs then, or when the wait is cancelled, ends with a ShuttingDown."""
        self.is_draining = True
        self.changed(True)
        try:
            async with asyncio.timeout(limit_s):
                await self._pulse.until(lambda: self.in_flight == 0)
            return True
        except TimeoutError:
            return False
        finally:
            fault = Fault("shutting_down", f"the neuron {self.name!r} is shutting down")
            for model, entry in self._entries.items():
                self._supervisors[entry.device].cancel(model, fault)

    async def close(self) -> None:
        """End every subscription and every operation."""
        self.feed.close()
        tasks = [record.task for record in self._operations.running() if record.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # facts

    @property
    def in_flight(self) -> int:
        """Generations whose answer is not completely delivered."""
        return sum(supervisor.open_streams for supervisor in self._supervisors.values())

    @property
    def failures(self) -> dict[str, str]:
        """device → cause, of those that have been given up."""
        return {
            device: supervisor.worker.cause or "unknown cause"
            for device, supervisor in self._supervisors.items()
            if supervisor.worker.phase == "failed"
        }

    @property
    def is_failed(self) -> bool:
        """Nothing can be served here until the neuron is restarted."""
        return bool(self._supervisors) and len(self.failures) == len(self._supervisors)

    def state(self) -> NodeState:
        """As it is this moment, under the version it was last published with."""
        return self._state(self.feed.state.version)

    def _state(self, version: int) -> NodeState:
        return NodeState(
            name=self.name,
            boot=self.boot,
            version=version,
            draining=self.is_draining,
            devices=[
                replace(self._devices[device], worker=supervisor.worker)
                for device, supervisor in self._supervisors.items()
            ],
            models=[self._model_state(model, entry) for model, entry in self._entries.items()],
        )

    def _model_state(self, model: str, entry: _Entry) -> ModelState:
        supervisor = self._supervisors[entry.device]
        held = supervisor.models.get(model)
        info = held.info if held else None
        fault = held.fault if held else entry.fault
        phase: ModelPhase
        if held is not None:
            phase = "draining" if entry.is_draining and held.phase == "ready" else held.phase
        elif entry.is_draining:
            phase = "unloading"
        else:
            phase = "failed" if fault else "loading"
        running, waiting = supervisor.load_of(model)
        header, params = entry.header, entry.spec.params
        progress = held.progress if held else (0.0 if phase == "loading" else None)
        state = ModelState(
            id=model,
            device=entry.device,
            phase=phase,
            path=entry.spec.path,
            file_bytes=header.file_bytes if header else 0,
            context=params.context,
            parallel=params.parallel,
            architecture=header.architecture if header else "",
            parameters=header.parameters if header else 0,
            progress=progress,
            running=running,
            waiting=waiting,
            fault=fault,
        )
        if info is None:
            return state
        return replace(
            state,
            memory_bytes=info.memory_bytes,
            context=info.context,
            parallel=info.parallel,
            load_s=info.load_s,
        )

    # generating

    def info(self, model: str) -> ipc.ModelInfo:
        """What the worker said of a model that is ready. Raises as `open`, bar the 429."""
        return self._ready(model)[1]

    def open(self, ask: ipc.Ask) -> RequestStream:
        """Start what is asked; it is in flight until the stream is closed (`async with`).
        `ask.request` is 0: the worker's stream table chooses it.

        Raises ModelNotFound, ModelLoading, NoCapacity, RateLimitExceeded, ShuttingDown, or
        InvalidRequest for a model of another kind.
        """
        model = ask.model
        supervisor, info = self._ready(model)
        check_kind(ask, info.kind)
        running, waiting = supervisor.load_of(model)
        room = info.parallel + self._engine.max_waiting
        if running + waiting >= room:
            raise RateLimitExceeded(
                f"the model {model!r} has {running} requests running and {waiting} waiting; it "
                f"takes {room} in all (its parallel + engine.max_waiting)"
            )
        return supervisor.open(ask)

    def _ready(self, model: str) -> tuple[Supervisor, ipc.ModelInfo]:
        self._refuse_when_draining()
        entry = self._entries.get(model)
        if entry is None:
            raise self._missing(model)
        supervisor = self._supervisors[entry.device]
        held = supervisor.models.get(model)
        if held and held.phase == "ready" and held.info and not entry.is_draining:
            return supervisor, held.info
        state = self._model_state(model, entry)
        if state.phase in ("loading", "recovering"):
            done = f" ({state.progress:.0%})" if state.progress is not None else ""
            raise ModelLoading(f"the model {model!r} is {state.phase}{done} on {entry.device}")
        if state.phase == "failed":
            why = state.fault.message if state.fault else "unknown cause"
            raise NoCapacity(f"the model {model!r} has failed: {why}")
        raise NoCapacity(f"the model {model!r} is being unloaded")

    def _refuse_when_draining(self) -> None:
        if self.is_draining:
            raise ShuttingDown(f"the neuron {self.name!r} is shutting down")

    def _missing(self, model: str) -> ModelNotFound:
        near = difflib.get_close_matches(model, self._entries, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        loaded = ", ".join(self._entries) or "none"
        return ModelNotFound(
            f"the model {model!r} is not loaded{hint}; loaded models: {loaded}", param="model"
        )

    # loading

    async def load(self, model: str, wanted: Wanted) -> OperationRecord:
        """Begin a load, or join the one in progress; for a model that is ready nothing is done.

        Raises at once what can be known at once: ShuttingDown, InvalidRequest (device), Conflict,
        ModelNotFound, Forbidden, PreflightFailed, NoCapacity.
        """
        self._refuse_when_draining()
        if wanted.device is not None and wanted.device not in self._supervisors:
            known = ", ".join(self._supervisors)
            raise InvalidRequest(
                f"device: there is no {wanted.device!r} here; devices: {known}", param="device"
            )
        if joined := self._join(model, wanted):
            return joined
        header = await asyncio.to_thread(self._inspect, model)
        # While the file was read, somebody else may have begun the same load.
        self._refuse_when_draining()
        if joined := self._join(model, wanted):
            return joined
        before = self._running(model)
        if before is None:
            self._place(model, header, wanted)  # refuses now, while the asker listens
        record = self._operations.begin("load", model, lambda: self._progress(model))
        self._carry_out(record, wanted, self._load(model, header, wanted, before))
        return record

    def show_failed(self, model: str, wanted: Wanted, error: CortexError) -> None:
        """A default model whose load could not even begin is shown as failed, with its cause."""
        device = wanted.device if wanted.device in self._supervisors else None
        device = device or next(iter(self._supervisors))
        entry = self._entries[model] = _Entry(device, self._spec(model, "", device, wanted), None)
        entry.fault = error.fault
        self.changed(True)

    def _inspect(self, model: str) -> GgufHeader:
        return read_header(self._resolver.resolve(model))

    def _join(self, model: str, wanted: Wanted) -> OperationRecord | None:
        """The operation that does, or has done, what is wanted; None when there is none.
        Raises Conflict when the model is there, or will be, with other parameters."""
        before = self._running(model)
        if before is not None and before.kind == "unload":
            return None
        entry = self._entries.get(model)
        if before is not None:
            self._compare(model, entry, wanted, "being loaded")
            return before
        state = self._model_state(model, entry) if entry else None
        if state is None or state.phase not in ("ready", "recovering"):
            return None
        self._compare(model, entry, wanted, "loaded")
        record = self._operations.begin("load", model, lambda: self._progress(model))
        if state.phase == "ready":
            record.succeed(state)
        else:
            self._carry_out(record, wanted, self._recovered(model))
        return record

    def _compare(self, model: str, entry: _Entry | None, wanted: Wanted, how: str) -> None:
        _, asked = self._newest.get(model, (None, Wanted()))
        has = {name: (getattr(asked, name),) for name in Wanted.__struct_fields__}
        if entry is not None and not entry.is_draining:
            # What was asked for, and what it came to: a context of 0 asks for the model's own.
            state, params = self._model_state(model, entry), entry.spec.params
            has = {
                "device": (entry.device,),
                "context": (state.context, params.context),
                "parallel": (state.parallel, params.parallel),
            }
        for name, values in has.items():
            mine = getattr(wanted, name)
            if mine is not None and mine not in values:
                raise Conflict(
                    f"{name}: {model!r} is {how} with {values[0]!r}, not {mine!r}; unload it first",
                    param=name,
                )

    async def _recovered(self, model: str) -> ModelState:
        def is_over() -> bool:
            entry = self._entries.get(model)
            return entry is None or self._model_state(model, entry).phase != "recovering"

        await self._pulse.until(is_over)
        self._ready(model)
        return self._model_state(model, self._entries[model])

    async def _load(
        self, model: str, header: GgufHeader, wanted: Wanted, before: OperationRecord | None
    ) -> ModelState:
        if before is not None:
            await before.settled()
            self._refuse_when_draining()
            self._place(model, header, wanted)
        entry = self._entries[model]
        _log.info("loading", model=model, device=entry.device, path=entry.spec.path)
        try:
            await self._supervisors[entry.device].load(entry.spec)
        except CortexError as error:
            entry.fault = error.fault
            raise
        return self._model_state(model, entry)

    def _place(self, model: str, header: GgufHeader, wanted: Wanted) -> None:
        """Give the model its device. Raises NoCapacity."""
        device = wanted.device or roomiest(
            map(self._candidate, self._supervisors), header.file_bytes
        )
        if cause := self.failures.get(device):
            raise NoCapacity(f"the device {device} has failed: {cause}")
        if old := self._entries.pop(model, None):
            self._supervisors[old.device].forget(model)
        self._entries[model] = _Entry(
            device, self._spec(model, header.path, device, wanted), header
        )
        self.changed(True)

    def _candidate(self, device: str) -> Candidate:
        state = self._devices[device]
        mine = [entry for entry in self._entries.values() if entry.device == device]
        promised = sum(
            entry.header.file_bytes
            for entry in mine
            if entry.header and self._model_state(entry.spec.model, entry).phase == "loading"
        )
        free = state.memory_free_bytes
        return Candidate(
            device,
            state.kind == "cpu",
            None if free is None else free - promised,
            len(mine),
            self.failures.get(device),
        )

    def _spec(self, model: str, path: str, device: str, wanted: Wanted) -> LoadSpec:
        engine = self._engine
        is_cpu = self._devices[device].kind == "cpu"
        threads = engine.threads
        cpu_devices = sum(1 for state in self._devices.values() if state.kind == "cpu")
        if not threads and is_cpu and cpu_devices > 1:
            threads = max(1, len(os.sched_getaffinity(0)) // cpu_devices)
        params = ipc.EngineParams(
            context=engine.context if wanted.context is None else wanted.context,
            parallel=engine.parallel if wanted.parallel is None else wanted.parallel,
            batch=engine.batch,
            threads=threads,
            gpu_layers=0 if is_cpu else -1,
        )
        return LoadSpec(model, path, params)

    # unloading

    def unload(self, model: str, force: bool) -> OperationRecord:
        """Begin an unload behind whatever the model is doing, or join the one in progress.

        Running requests are let finish, or are ended now with `force`. Raises ModelNotFound.
        """
        before = self._running(model)
        if before is not None and before.kind == "unload":
            if force:
                self._end_requests(model)
            return before
        if before is None and model not in self._entries:
            raise self._missing(model)
        record = self._operations.begin("unload", model)
        self._carry_out(record, Wanted(), self._unload(model, force, before))
        return record

    async def _unload(self, model: str, force: bool, before: OperationRecord | None) -> None:
        if before is not None:
            await before.settled()
        entry = self._entries.get(model)
        if entry is None:
            return
        supervisor = self._supervisors[entry.device]
        entry.is_draining = True
        self.changed(True)
        _log.info("unloading", model=model, device=entry.device, force=force)
        if force:
            self._end_requests(model)
        await self._pulse.until(lambda: supervisor.load_of(model) == (0, 0))
        await supervisor.unload(model)
        del self._entries[model]
        self.changed(True)

    def _end_requests(self, model: str) -> None:
        if entry := self._entries.get(model):
            fault = Fault("upstream_failed", f"the model {model!r} was unloaded by force")
            self._supervisors[entry.device].cancel(model, fault)

    # operations

    def operation(self, identity: str) -> OperationRecord:
        """Raises NotFound."""
        return self._operations.find(identity)

    def _running(self, model: str) -> OperationRecord | None:
        """The newest operation of a model, while it has not ended. Operations of one model run in
        the order they came, so whoever comes next waits for this one alone."""
        newest = self._newest.get(model)
        return newest[0] if newest and newest[0].is_running else None

    def _progress(self, model: str) -> float:
        entry = self._entries.get(model)
        return (self._model_state(model, entry).progress or 0.0) if entry else 0.0

    def _carry_out(
        self, record: OperationRecord, wanted: Wanted, work: Coroutine[Any, Any, ModelState | None]
    ) -> None:
        async def run() -> None:
            try:
                record.succeed(await work)
                _log.info(f"{record.kind} done", model=record.model, operation=record.id)
            except CortexError as error:
                record.fail(error)
                _log.error(f"{record.kind} failed", model=record.model, cause=error.message)
            except asyncio.CancelledError:
                record.fail(ShuttingDown(f"the neuron {self.name!r} is shutting down"))
                raise
            except Exception:
                record.fail(InternalError(f"the {record.kind} of {record.model!r} failed"))
                _log.exception(f"{record.kind} failed", model=record.model)
            finally:
                self.changed(True)

        self._newest[record.model] = (record, wanted)
        record.task = asyncio.create_task(run(), name=record.id)

"""What has a place on this node, and how things stand with it. Facts only; it begins nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from cortex_core.errors import (
    Fault,
    ModelLoading,
    ModelNotFound,
    NoCapacity,
    NodeUnavailable,
    ShuttingDown,
)
from cortex_core.fleet.discovery import DeviceState, ModelLimit, ModelPhase, ModelState
from cortex_core.wire import ipc
from neuron.devices import host_memory
from neuron.models.fetching import Fetch
from neuron.models.footprint import Footprint, Room
from neuron.models.gguf import GgufHeader
from neuron.models.placing import Candidate
from neuron.supervisor import Supervisor
from neuron.worker_events import LoadSpec

__all__ = ["Entry", "Inventory"]

_FETCH_SHARE = 0.9  # of a load's progress, where there is something to download


class Entry:
    """A model that has a place: loading, ready, leaving, or failed there. `asked`: the parameters
    before what was left open was decided. `is_seen`: the devices' readings know of it. `fetch`: its
    download, once there was one to do."""

    __slots__ = (
        "asked",
        "device",
        "fault",
        "fetch",
        "footprint",
        "header",
        "is_draining",
        "is_seen",
        "spec",
    )

    def __init__(
        self,
        device: str,
        spec: LoadSpec,
        header: GgufHeader | None = None,
        footprint: Footprint | None = None,
        asked: ipc.EngineParams | None = None,
    ) -> None:
        self.device = device
        self.spec = spec
        self.header = header
        self.footprint = footprint
        self.asked = asked or spec.params
        self.is_draining = False
        self.is_seen = False
        self.fetch: Fetch | None = None
        self.fault: Fault | None = None  # of a load that no worker knows of


class Inventory:
    """`entries` by model id. Devices and supervisors share their ids, in the order of listing.
    `holdings` counts the changes of what has a place: whoever gives or takes one adds to it.
    `is_drained`: an operator wants nothing new here; `is_stopping`: the process is about to end.
    `cpu_memory_bytes`: what each CPU device pretends to have; 0 = the host's memory, shared."""

    def __init__(self, name: str, cpu_memory_bytes: int = 0) -> None:
        self.name = name
        self._cpu_memory_bytes = cpu_memory_bytes
        self.is_stopping = False
        self.is_drained = False
        self.holdings = 0
        self.entries: dict[str, Entry] = {}
        self.supervisors: dict[str, Supervisor] = {}
        self.devices: dict[str, DeviceState] = {}
        self.host_memory: Callable[[], tuple[int | None, int | None]] = host_memory

    def attach(self, supervisors: Mapping[str, Supervisor]) -> None:
        self.supervisors = dict(supervisors)
        self.devices = {s.device.id: s.device for s in supervisors.values()}

    def read(self, devices: list[DeviceState]) -> None:
        """Fresh readings of the devices."""
        self.devices.update((device.id, device) for device in devices)
        for model, entry in self.entries.items():
            entry.is_seen = self.state_of(model).phase not in ("loading", "recovering")

    # models

    @property
    def failures(self) -> dict[str, str]:
        """device → cause, of those that have been given up."""
        return {
            device: supervisor.worker.cause or "unknown cause"
            for device, supervisor in self.supervisors.items()
            if supervisor.worker.phase == "failed"
        }

    def ready(self, model: str) -> tuple[Supervisor, ipc.ModelInfo]:
        """Raises ModelNotFound, ModelLoading, NoCapacity, NodeUnavailable or ShuttingDown."""
        self.refuse_when_draining()
        entry = self.entries.get(model)
        if entry is None:
            raise self.missing(model)
        supervisor = self.supervisors[entry.device]
        held = supervisor.models.get(model)
        if held and held.phase == "ready" and held.info and not entry.is_draining:
            return supervisor, held.info
        state = self.state_of(model)
        if state.phase in ("loading", "recovering"):
            done = f" ({state.progress:.0%})" if state.progress is not None else ""
            raise ModelLoading(f"the model {model!r} is {state.phase}{done} on {entry.device}")
        if state.phase == "failed":
            why = state.fault.message if state.fault else "unknown cause"
            raise NoCapacity(f"the model {model!r} has failed: {why}")
        raise NoCapacity(f"the model {model!r} is being unloaded")

    @property
    def is_draining(self) -> bool:
        return self.is_stopping or self.is_drained

    def refuse_when_draining(self) -> None:
        """Raises ShuttingDown, or NodeUnavailable while an operator's drain lasts."""
        self.refuse_when_stopping()
        if self.is_drained:
            raise NodeUnavailable(
                f"the neuron {self.name!r} is drained: it takes no requests and no loads until it "
                "is undrained"
            )

    def refuse_when_stopping(self) -> None:
        """Raises ShuttingDown."""
        if self.is_stopping:
            raise ShuttingDown(f"the neuron {self.name!r} is shutting down")

    def missing(self, model: str) -> ModelNotFound:
        near = difflib.get_close_matches(model, self.entries, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        loaded = ", ".join(self.entries) or "none"
        return ModelNotFound(
            f"the model {model!r} is not loaded{hint}; loaded models: {loaded}", param="model"
        )

    def state_of(self, model: str) -> ModelState:
        entry = self.entries[model]
        supervisor = self.supervisors[entry.device]
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
        if entry.fetch is not None and progress is not None:
            progress = _FETCH_SHARE * entry.fetch.fraction + (1 - _FETCH_SHARE) * progress
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
            limit=ModelLimit(params.context) if params.context else None,
        )
        if info is None:
            return state
        return replace(
            state,
            memory_bytes=info.memory_bytes,
            weights_bytes=info.weights_bytes,
            kv_bytes=info.kv_bytes,
            compute_bytes=info.compute_bytes,
            context=info.context,
            parallel=info.parallel,
            kv=info.kv,
            kv_type=info.kv_type,
            cells=info.cells,
            load_s=info.load_s,
            limit=ModelLimit(info.context),
        )

    # memory

    def device(self, device: str) -> DeviceState:
        """As it was last read; a CPU that pretends has what it pretends."""
        state = self.devices[device]
        if state.kind == "cpu" and self._cpu_memory_bytes:
            room = self._pretended(device)
            state = replace(
                state, memory_total_bytes=room.total_bytes, memory_free_bytes=room.free_bytes
            )
        return replace(state, worker=self.supervisors[device].worker)

    def candidate(self, device: str) -> Candidate:
        state = self.devices[device]
        models = sum(1 for entry in self.entries.values() if entry.device == device)
        host, gpus = self.rooms(device)
        room = gpus[0] if gpus else host
        return Candidate(
            device, state.kind == "cpu", room.free_bytes, models, self.failures.get(device)
        )

    def rooms(self, device: str, besides: str = "") -> tuple[Room, list[Room]]:
        """The host's memory and the GPUs that the worker of a device sees. Free is what the driver
        says, less what loads under way will take; the model `besides` is not counted."""
        if self.devices[device].kind == "cpu":
            room = replace(self._host(besides), device=device)
            if self._cpu_memory_bytes:
                pretended = self._pretended(device, besides)
                # What is not really there cannot be had either.
                free = [r.free_bytes for r in (pretended, room) if r.free_bytes is not None]
                room = replace(pretended, free_bytes=min(free))
            return room, []
        return self._host(besides), [self._gpu(device, besides)]

    def _pretended(self, device: str, besides: str = "") -> Room:
        """What a CPU pretends to have, less what its models take: measured, or what is promised to
        those on their way."""
        free = self._cpu_memory_bytes
        for model, entry in self.entries.items():
            if model == besides or entry.device != device:
                continue
            state = self.state_of(model)
            if state.phase != "failed" and entry.footprint is not None:
                free -= state.memory_bytes or entry.footprint.total_bytes
        return Room(device, max(free, 0), self._cpu_memory_bytes)

    def _host(self, besides: str = "") -> Room:
        of_host = next((d for d in self.devices.values() if d.kind == "cpu"), None)
        if of_host is None:
            total, free = self.host_memory()
        else:
            total, free = of_host.memory_total_bytes, of_host.memory_free_bytes
        if free is not None:
            for model, entry in self.entries.items():
                if model != besides and entry.footprint is not None:
                    free -= self._taken_of_host(model, entry, entry.footprint)
            free = max(free, 0)
        return Room("host", free, total)

    def _taken_of_host(self, model: str, entry: Entry, footprint: Footprint) -> int:
        """What a model takes of the host's memory that the system reports as available."""
        host = footprint.devices[-1]
        if self._is_promised(model, entry):
            return host.total_bytes
        # The system calls the pages of a mapped file available, but a model in use needs them.
        is_mapped = entry.spec.params.mmap and not entry.spec.params.mlock
        is_there = self.state_of(model).phase != "failed"
        return host.weights_bytes if is_mapped and is_there else 0

    def _gpu(self, device: str, besides: str = "") -> Room:
        state = self.devices[device]
        free = state.memory_free_bytes
        if free is not None:
            for model, entry in self.entries.items():
                is_other = model != besides and entry.device == device
                if is_other and entry.footprint and self._is_promised(model, entry):
                    free -= sum(taken.total_bytes for taken in entry.footprint.devices[:-1])
            free = max(free, 0)
        return Room(device, free, state.memory_total_bytes)

    def _is_promised(self, model: str, entry: Entry) -> bool:
        """On its way (or on its way back), or there but since the devices were last read."""
        phase = self.state_of(model).phase
        is_coming = phase in ("loading", "recovering")
        return is_coming or (phase in ("ready", "draining") and not entry.is_seen)

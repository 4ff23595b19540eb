"""Loads and unloads: one at a time per model, in the order they came, each an operation to ask
about. Who may generate, and what the node says of itself, is the registry's affair.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from cortex_core.config.loading import SamplingDefaults
from cortex_core.config.neuron import EngineSection
from cortex_core.errors import (
    Conflict,
    CortexError,
    Fault,
    InvalidRequest,
    NoCapacity,
    PreflightFailed,
    UpstreamFailed,
)
from cortex_core.fleet.discovery import ModelState
from cortex_core.wire import ipc
from neuron import logs
from neuron.detached import detached
from neuron.devices import cpu_flags
from neuron.models.fetching import Fetch
from neuron.models.gguf import GgufHeader
from neuron.models.headers import Headers
from neuron.models.hub import HubModel
from neuron.models.inventory import Entry, Inventory
from neuron.models.operations import OperationRecord, Operations
from neuron.models.options import Wanted, asked, params_of
from neuron.models.placing import by_room
from neuron.models.preflight import Estimate, Preflight
from neuron.models.resolve import Resolver
from neuron.pulse import Pulse
from neuron.worker_events import LoadSpec

__all__ = ["Loading"]

_log = logs.get(__name__)
_INSPECT_S = 60.0  # a hub that answers in drops must not hold up whoever asks about a model


class Loading:
    """`changed(urgent)` is told of every change; `pulse` beats with each."""

    def __init__(
        self,
        inventory: Inventory,
        engine: EngineSection,
        resolver: Resolver,
        operations: Operations,
        pulse: Pulse,
        changed: Callable[[bool], None],
    ) -> None:
        self._inventory = inventory
        self._engine = engine
        self._resolver = resolver
        self._operations = operations
        self._pulse = pulse
        self._changed = changed
        self._headers = Headers()
        self._newest: dict[str, tuple[OperationRecord, Wanted]] = {}  # per model
        self._sampling: dict[str, SamplingDefaults] = {}  # per model, of its newest load

    async def load(
        self, model: str, wanted: Wanted, if_holdings: int | None = None
    ) -> OperationRecord:
        """Begin a load, or join the one in progress; for a model that is ready nothing is done.

        Raises at once what can be known at once: ShuttingDown, NodeUnavailable (drained),
        InvalidRequest (an option), Conflict (also for other holdings than `if_holdings`),
        ModelNotFound, Forbidden, PreflightFailed, NoCapacity.
        """
        if joined := self._join(model, wanted, if_holdings):
            return joined
        header, remote = await self._inspect(model, wanted.source, is_to_load=True)
        # While the file was read, somebody else may have begun the same load.
        if joined := self._join(model, wanted, if_holdings):
            return joined
        self._set_sampling(model, wanted.sampling)
        before = self._running(model)
        if before is None:
            self._place(model, header, remote, wanted)  # refuses now, while the asker listens
        record = self._operations.begin("load", model, lambda: self._progress(model))
        self._carry_out(record, wanted, self._load(model, header, remote, wanted, before))
        return record

    async def estimate(self, model: str, wanted: Wanted) -> Estimate:
        """What that load would take and whether it would be let; nothing is touched, and nothing
        downloaded. Raises InvalidRequest, ModelNotFound, Forbidden, PreflightFailed (of the file),
        NoCapacity, or a hub's RateLimitExceeded or UpstreamFailed."""
        self._check_device(wanted)
        header, _ = await self._inspect(model, wanted.source)
        device, preflight = self._choose(model, header, wanted)
        return await asyncio.to_thread(preflight.estimate, model, device)

    def show_failed(self, model: str, wanted: Wanted, error: CortexError) -> None:
        """A default model whose load could not even begin is shown as failed, with its cause."""
        inventory = self._inventory
        device = wanted.device if wanted.device in inventory.supervisors else None
        device = device or next(iter(inventory.supervisors))
        spec = LoadSpec(model, "", ipc.EngineParams(parallel=self._engine.parallel))
        entry = inventory.entries[model] = Entry(device, spec)
        entry.fault = error.fault
        self._holdings_changed()

    def unload(
        self,
        model: str,
        force: bool,
        *,
        if_holdings: int | None = None,
        if_idle: bool = False,
    ) -> OperationRecord:
        """Begin an unload behind whatever the model is doing, or join the one in progress. A
        download is called off, and with it the load.

        Running requests are let finish, or are ended now with `force`. Raises ModelNotFound, or
        Conflict: for other holdings than `if_holdings`, and, with `if_idle`, for a model that is on
        its way or has requests.
        """
        self._check_holdings(if_holdings)
        before = self._running(model)
        if before is not None and before.kind == "unload":
            if force:
                self._end_requests(model)
            return before
        if before is None and model not in self._inventory.entries:
            raise self._inventory.missing(model)
        if if_idle:
            self._check_idle(model, before)
        entry = self._inventory.entries.get(model)
        if entry is not None and entry.fetch is not None:
            entry.fetch.call_off()
        if before is None:
            self._begin_unload(model)  # in this very moment: nothing can begin on an idle model
        record = self._operations.begin("unload", model)
        self._carry_out(record, Wanted(), self._unload(model, force, before))
        return record

    def sampling_of(self, model: str) -> dict[str, Any]:
        """What the newest load of a model gave as its sampling, by name."""
        sampling = self._sampling.get(model)
        return sampling.given if sampling is not None else {}

    # conditions

    def _check_holdings(self, expected: int | None) -> None:
        actual = self._inventory.holdings
        if expected is not None and expected != actual:
            raise Conflict(
                f"if_holdings: {expected} is not what the node is at ({actual}): models have come "
                "or gone since; look again",
                param="if_holdings",
            )

    def _check_idle(self, model: str, before: OperationRecord | None) -> None:
        if before is not None:
            raise Conflict(f"if_idle: {model!r} is being loaded", param="if_idle")
        state = self._inventory.state_of(model)
        if state.running or state.waiting:
            raise Conflict(
                f"if_idle: {model!r} has {state.running} requests running and {state.waiting} "
                "waiting",
                param="if_idle",
            )
        if state.phase == "recovering":
            raise Conflict(f"if_idle: {model!r} is recovering", param="if_idle")

    def _check_device(self, wanted: Wanted) -> None:
        known = self._inventory.supervisors
        if wanted.device is not None and wanted.device not in known:
            raise InvalidRequest(
                f"device: there is no {wanted.device!r} here; devices: {', '.join(known)}",
                param="device",
            )

    # joining

    async def _inspect(
        self, model: str, source: str | None, *, is_to_load: bool = False
    ) -> tuple[GgufHeader, HubModel | None]:
        """The model's header and, where it has yet to be downloaded, from where. Raises as
        `Resolver.resolve`, PreflightFailed of the file or, `is_to_load`, of the disk, and
        UpstreamFailed for a hub that takes longer than `_INSPECT_S`."""

        def inspect() -> tuple[GgufHeader, HubModel | None]:
            found = self._resolver.resolve(model, source)
            if not isinstance(found, HubModel):
                return self._headers.of(found), None
            if is_to_load:
                found.check_disk()
            return found.header(), found

        try:
            async with asyncio.timeout(_INSPECT_S):
                return await detached(inspect, f"inspect {model}")
        except TimeoutError:
            raise UpstreamFailed(f"{model}: not found out about within {_INSPECT_S:g} s") from None

    def _join(self, model: str, wanted: Wanted, if_holdings: int | None) -> OperationRecord | None:
        """The operation that does, or has done, what is wanted; None when there is none, and then
        nothing stands against a load. Raises what does: ShuttingDown, NodeUnavailable, or Conflict
        when the model is there, or will be, with other parameters."""
        self._inventory.refuse_when_draining()
        self._check_device(wanted)
        self._check_holdings(if_holdings)
        joined = self._find(model, wanted)
        if joined is not None and wanted.sampling is not None:
            self._set_sampling(model, wanted.sampling)
        return joined

    def _set_sampling(self, model: str, sampling: SamplingDefaults | None) -> None:
        if sampling is None:
            self._sampling.pop(model, None)
        else:
            self._sampling[model] = sampling

    def _find(self, model: str, wanted: Wanted) -> OperationRecord | None:
        before = self._running(model)
        if before is not None and before.kind == "unload":
            return None
        entry = self._inventory.entries.get(model)
        if before is not None:
            self._compare(model, entry, wanted, "being loaded")
            return before
        state = self._inventory.state_of(model) if entry else None
        if state is None or state.phase not in ("ready", "recovering"):
            return None
        self._compare(model, entry, wanted, "loaded")
        record = self._operations.begin("load", model, lambda: self._progress(model))
        if state.phase == "ready":
            record.succeed(state)
        else:
            self._carry_out(record, wanted, self._recovered(model))
        return record

    def _compare(self, model: str, entry: Entry | None, wanted: Wanted, how: str) -> None:
        """What it has is what was asked for, or what that came to: a context of 0 asks for what
        fits. Raises Conflict, naming the first option that differs."""
        _, first = self._newest.get(model, (None, Wanted()))
        options = asked(wanted)
        has: dict[str, tuple[Any, ...]]
        if entry is None or entry.is_draining:
            earlier = asked(first)
            has = {name: (earlier.get(name),) for name in options}
            device = first.device
        else:
            given, came_to = entry.asked, entry.spec.params
            state = self._inventory.state_of(model)
            has = {
                name: (
                    getattr(state, name, None) or getattr(came_to, name),
                    getattr(came_to, name),
                    getattr(given, name),
                )
                for name in options
            }
            mine = self._params(wanted, entry.device)
            options = {name: getattr(mine, name) for name in options}
            device = entry.device
        if wanted.device is not None:
            options["device"], has["device"] = wanted.device, (device,)
        if wanted.source is not None:
            options["source"], has["source"] = wanted.source, (first.source or wanted.source,)
        for name, value in options.items():
            if value not in has[name]:
                raise Conflict(
                    f"{name}: {model!r} is {how} with {has[name][0]!r}, not {value!r}; "
                    "unload it first",
                    param=name,
                )

    async def _recovered(self, model: str) -> ModelState:
        inventory = self._inventory

        def is_over() -> bool:
            return model not in inventory.entries or inventory.state_of(model).phase != "recovering"

        await self._pulse.until(is_over)
        inventory.ready(model)
        return inventory.state_of(model)

    # placing

    async def _load(
        self,
        model: str,
        header: GgufHeader,
        remote: HubModel | None,
        wanted: Wanted,
        before: OperationRecord | None,
    ) -> ModelState:
        inventory = self._inventory
        if before is not None:
            await before.settled()
            inventory.refuse_when_draining()
            self._place(model, header, remote, wanted)
        entry = inventory.entries[model]
        _log.info("loading", model=model, device=entry.device, path=entry.spec.path)
        try:
            if entry.fetch is not None:
                await self._fetch(entry, entry.fetch)
            await inventory.supervisors[entry.device].load(entry.spec)
        except CortexError as error:
            entry.fault = error.fault
            raise
        finally:
            self._holdings_changed()
        return inventory.state_of(model)

    async def _fetch(self, entry: Entry, fetch: Fetch) -> None:
        path = await fetch.run()
        # What a hub said of the file was good enough to find a place for it; this is the file.
        entry.header = await detached(lambda: self._headers.of(path), f"read {path.name}")
        entry.spec = msgspec.structs.replace(entry.spec, path=str(path))

    def _place(
        self, model: str, header: GgufHeader, remote: HubModel | None, wanted: Wanted
    ) -> None:
        """Give the model its device. Raises NoCapacity, InvalidRequest or PreflightFailed, and
        then nothing has changed."""
        inventory = self._inventory
        device, preflight = self._choose(model, header, wanted)
        preflight.check_room(model)
        if old := inventory.entries.pop(model, None):
            inventory.supervisors[old.device].forget(model)
        entry = inventory.entries[model] = Entry(
            device,
            LoadSpec(model, header.path, preflight.params),
            header,
            preflight.footprint,
            self._params(wanted, device),
        )
        if remote is not None:
            entry.fetch = Fetch(remote.order, lambda: self._changed(False))
        self._holdings_changed()

    def _choose(self, model: str, header: GgufHeader, wanted: Wanted) -> tuple[str, Preflight]:
        """The device that is wanted, or the best one where it fits; the best where it does not fit
        on any. Raises NoCapacity or InvalidRequest."""
        inventory = self._inventory
        if cause := inventory.failures.get(wanted.device or ""):
            raise NoCapacity(f"the device {wanted.device} has failed: {cause}")
        candidates = [wanted.device] if wanted.device else list(inventory.supervisors)
        ranked = by_room(map(inventory.candidate, candidates), header.file_bytes)
        choices: list[tuple[str, Preflight]] = []
        for device in ranked:
            host, gpus = inventory.rooms(device, besides=model)
            params = self._params(wanted, device)
            preflight = Preflight(header, params, host, gpus, cpu_flags=cpu_flags())
            choices.append((device, preflight))
            try:
                preflight.check_room(model)
            except PreflightFailed:
                continue
            return device, preflight
        return choices[0]

    def _params(self, wanted: Wanted, device: str) -> ipc.EngineParams:
        devices = self._inventory.devices
        cpus = sum(1 for state in devices.values() if state.kind == "cpu")
        is_cpu = devices[device].kind == "cpu"
        threads = 0
        if is_cpu and cpus > 1:
            threads = max(1, len(os.sched_getaffinity(0)) // cpus)
        return params_of(
            self._engine, wanted, device=device, gpus=0 if is_cpu else 1, threads=threads
        )

    # unloading

    async def _unload(self, model: str, force: bool, before: OperationRecord | None) -> None:
        if before is not None:
            await before.settled()
        inventory = self._inventory
        entry = inventory.entries.get(model)
        if entry is None:
            return
        supervisor = inventory.supervisors[entry.device]
        if not entry.is_draining:
            self._begin_unload(model)
        _log.info("unloading", model=model, device=entry.device, force=force)
        if force:
            self._end_requests(model)
        await self._pulse.until(lambda: supervisor.load_of(model) == (0, 0))
        await supervisor.unload(model)
        del inventory.entries[model]
        self._holdings_changed()

    def _begin_unload(self, model: str) -> None:
        self._inventory.entries[model].is_draining = True
        self._holdings_changed()

    def _end_requests(self, model: str) -> None:
        if entry := self._inventory.entries.get(model):
            fault = Fault("upstream_failed", f"the model {model!r} was unloaded by force")
            self._inventory.supervisors[entry.device].cancel(model, fault)

    def _holdings_changed(self) -> None:
        self._inventory.holdings += 1
        self._changed(True)

    # operations

    def _running(self, model: str) -> OperationRecord | None:
        """The newest operation of a model, while it has not ended. Operations of one model run in
        the order they came, so whoever comes next waits for this one alone."""
        newest = self._newest.get(model)
        return newest[0] if newest and newest[0].is_running else None

    def _progress(self, model: str) -> float:
        inventory = self._inventory
        return (inventory.state_of(model).progress or 0.0) if model in inventory.entries else 0.0

    def _carry_out(
        self, record: OperationRecord, wanted: Wanted, work: Coroutine[Any, Any, ModelState | None]
    ) -> None:
        self._newest[record.model] = (record, wanted)
        self._operations.carry_out(record, work, self._changed)

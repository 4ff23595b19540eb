"""The node's models as the routes see them: what there is, who may generate, what is to change.

How a load or unload goes is `loading`'s affair, what there is `inventory`'s; which worker holds a
model and what happens when that worker dies is the supervisors'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from cortex_core.config.neuron import EngineSection
from cortex_core.errors import CortexError, Fault, RateLimitExceeded
from cortex_core.fleet.discovery import DeviceState, NodeState
from cortex_core.wire import ipc
from neuron.detached import detached
from neuron.models.inventory import Inventory
from neuron.models.kind import check_kind
from neuron.models.loading import Loading
from neuron.models.operations import OperationRecord, Operations
from neuron.models.options import Wanted
from neuron.models.preflight import Estimate
from neuron.models.resolve import KnownModel, Resolver
from neuron.models.restarting import Restarting
from neuron.pulse import Pulse
from neuron.state_feed import StateFeed
from neuron.streams import RequestStream
from neuron.supervisor import Supervisor

__all__ = ["Registry", "Wanted"]


class Registry:
    def __init__(
        self, name: str, engine: EngineSection, resolver: Resolver, cpu_memory_bytes: int = 0
    ) -> None:
        """`cpu_memory_bytes`: see `Inventory`."""
        self.name = name
        self.boot = uuid4().hex
        self._engine = engine
        self._resolver = resolver
        self._inventory = Inventory(name, cpu_memory_bytes)
        self._operations = Operations(self.boot)
        self._pulse = Pulse()
        self._loading = Loading(
            self._inventory, engine, resolver, self._operations, self._pulse, self.changed
        )
        self._restarting = Restarting(self._inventory, self._operations, self.changed)
        self.feed = StateFeed(self._state)

    # assembly

    def attach(self, supervisors: Mapping[str, Supervisor]) -> None:
        """Give it the devices it may use, in the order they are to be listed."""
        self._inventory.attach(supervisors)
        self.changed(True)

    def changed(self, urgent: bool) -> None:
        """A phase (urgent) or mere counts have changed."""
        self._pulse.beat()
        if not self.feed.is_closed:
            self.feed.changed(urgent)

    def read(self, devices: list[DeviceState]) -> None:
        """Fresh readings of the devices."""
        self._inventory.read(devices)
        self.changed(False)

    async def drain(self, limit_s: float) -> bool:
        """Admit nothing more and wait until every answer is delivered. False when `limit_s` passed
        first. What still runs then, or when the wait is cancelled, ends with a ShuttingDown."""
        inventory = self._inventory
        inventory.is_stopping = True
        self.changed(True)
        try:
            async with asyncio.timeout(limit_s):
                await self._pulse.until(lambda: self.in_flight == 0)
            return True
        except TimeoutError:
            return False
        finally:
            fault = Fault("shutting_down", f"the neuron {self.name!r} is shutting down")
            for model, entry in inventory.entries.items():
                inventory.supervisors[entry.device].cancel(model, fault)

    def set_drained(self, is_drained: bool) -> None:
        """An operator's drain begins or ends: nothing new is taken, what runs goes on. Raises
        ShuttingDown."""
        self._inventory.refuse_when_stopping()
        self._inventory.is_drained = is_drained
        self.changed(True)

    async def close(self) -> None:
        """End every subscription and every operation."""
        self.feed.close()
        tasks = [record.task for record in self._operations.running() if record.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # facts

    @property
    def is_draining(self) -> bool:
        """Nothing new is taken: an operator wants it so, or the process is about to end."""
        return self._inventory.is_draining

    @property
    def in_flight(self) -> int:
        """Generations whose answer is not completely delivered."""
        return sum(supervisor.open_streams for supervisor in self._inventory.supervisors.values())

    @property
    def failures(self) -> dict[str, str]:
        """device → cause, of those that have been given up."""
        return self._inventory.failures

    @property
    def is_failed(self) -> bool:
        """Nothing can be served here until the neuron is restarted."""
        supervisors = self._inventory.supervisors
        return bool(supervisors) and len(self.failures) == len(supervisors)

    def state(self) -> NodeState:
        """As it is this moment, under the version it was last published with."""
        return self._state(self.feed.state.version)

    def _state(self, version: int) -> NodeState:
        inventory = self._inventory
        return NodeState(
            name=self.name,
            boot=self.boot,
            version=version,
            draining=self.is_draining,
            devices=[inventory.device(device) for device in inventory.supervisors],
            models=[inventory.state_of(model) for model in inventory.entries],
            holdings=inventory.holdings,
        )

    def operation(self, identity: str) -> OperationRecord:
        """Raises NotFound."""
        return self._operations.find(identity)

    # generating

    def info(self, model: str) -> ipc.ModelInfo:
        """What the worker said of a model that is ready. Raises as `open`, bar the 429."""
        return self._inventory.ready(model)[1]

    def sampling_defaults(self, model: str) -> dict[str, Any]:
        """Sampling parameters by name that the newest load of a model asked for; they stand between
        a request's own and what the model's makers recommend."""
        return self._loading.sampling_of(model)

    def open(self, ask: ipc.Ask) -> RequestStream:
        """Start what is asked; it is in flight until the stream is closed (`async with`).
        `ask.request` is 0: the worker's stream table chooses it.

        Raises ModelNotFound, ModelLoading, NoCapacity, RateLimitExceeded, NodeUnavailable,
        ShuttingDown, or InvalidRequest for a model of another kind.
        """
        model = ask.model
        supervisor, info = self._inventory.ready(model)
        check_kind(ask, info.kind)
        running, waiting = supervisor.load_of(model)
        room = info.parallel + self._engine.max_waiting
        if running + waiting >= room:
            raise RateLimitExceeded(
                f"the model {model!r} has {running} requests running and {waiting} waiting; it "
                f"takes {room} in all (its parallel + engine.max_waiting)"
            )
        return supervisor.open(ask)

    # loading

    async def load(
        self, model: str, wanted: Wanted, if_holdings: int | None = None
    ) -> OperationRecord:
        """See `Loading.load`."""
        return await self._loading.load(model, wanted, if_holdings)

    async def estimate(self, model: str, wanted: Wanted) -> Estimate:
        """See `Loading.estimate`."""
        return await self._loading.estimate(model, wanted)

    def unload(
        self,
        model: str,
        force: bool,
        *,
        if_holdings: int | None = None,
        if_idle: bool = False,
    ) -> OperationRecord:
        """See `Loading.unload`."""
        return self._loading.unload(model, force, if_holdings=if_holdings, if_idle=if_idle)

    async def known(self) -> list[KnownModel]:
        """What could be loaded without a download."""
        return await detached(self._resolver.known, "known models")

    def restart(self, device: str, drain_s: float) -> OperationRecord:
        """See `Restarting.restart`."""
        return self._restarting.restart(device, drain_s)

    def show_failed(self, model: str, wanted: Wanted, error: CortexError) -> None:
        """See `Loading.show_failed`."""
        self._loading.show_failed(model, wanted, error)

"""A registry over devices whose workers are scripted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from cortex_core.config.neuron import EngineSection
from cortex_core.fleet.discovery import DeviceState, ModelState, NodeState, WorkerState
from cortex_core.wire import ipc
from neuron.models.hub import Hub
from neuron.models.registry import Registry, Wanted
from neuron.models.resolve import Resolver
from neuron.streams import RequestStream
from neuron.supervisor import Supervisor
from neuron.worker_policy import Limits
from tests.unit.neuron import scripted_worker
from tests.unit.neuron.gguf_bytes import gguf

__all__ = ["ANYHOW", "Node", "fill", "node"]

SCRIPT = str(Path(scripted_worker.__file__))
ANYHOW = Wanted()


class Node:
    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry = registry
        self.folder = folder

    @property
    def holdings(self) -> int:
        return self.registry.state().holdings

    async def load(
        self, model: str, wanted: Wanted = ANYHOW, if_holdings: int | None = None
    ) -> ModelState | None:
        async with asyncio.timeout(20):
            record = await self.registry.load(model, wanted, if_holdings)
            await record.ended()
            return record.report().result

    async def unload(self, model: str, force: bool = False) -> None:
        async with asyncio.timeout(20):
            await self.registry.unload(model, force).ended()

    def generate(self, prompt: str = "hi", model: str = "a.gguf") -> RequestStream:
        return self.registry.open(ipc.Generate(0, model, prompt, ipc.Sampling()))

    def phase(self, model: str = "a.gguf") -> str | None:
        return next((m.phase for m in self.registry.state().models if m.id == model), None)

    async def until(self, is_true: Callable[[NodeState], bool]) -> NodeState:
        async with asyncio.timeout(20):
            state = await self.registry.feed.beyond(0)
            while state is not None and not is_true(state):
                state = await self.registry.feed.beyond(state.version)
            assert state is not None
            return state

    def release(self) -> None:
        """Let the loads of slow workers go on."""
        (self.folder / "go").touch()


def fill(folder: Path) -> None:
    """The models that a scripted worker knows by name."""
    for name in ("a.gguf", "b.gguf", "poison.gguf", "refused"):
        (folder / name).write_bytes(gguf())
    (folder / "bad.gguf").write_bytes(gguf()[:-1])


@asynccontextmanager
async def node(
    folder: Path,
    habits: str = "",
    devices: int = 1,
    max_waiting: int = 4,
    cpu_memory_bytes: int = 0,
    hubs: Mapping[str, Hub] | None = None,
) -> AsyncIterator[Node]:
    engine = EngineSection(parallel=2, max_waiting=max_waiting)
    registry = Registry("n", engine, Resolver([str(folder)], hubs=hubs), cpu_memory_bytes)
    limits = Limits(backoff_first_s=0.01)
    supervisors = {}
    for n in range(devices):
        device = DeviceState(f"cpu:{n}", "cpu", "test", WorkerState("starting"))
        command = [sys.executable, SCRIPT, habits]
        supervisors[device.id] = Supervisor(device, limits, registry.changed, command)
    registry.attach(supervisors)
    for supervisor in supervisors.values():
        supervisor.start()
    try:
        yield Node(registry, folder)
    finally:
        await registry.close()
        await asyncio.gather(*(s.stop() for s in supervisors.values()))

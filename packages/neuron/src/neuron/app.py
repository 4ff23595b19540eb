"""Assembly: devices, supervisors, registry and routes as one ASGI application."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.types import ASGIApp

from cortex_core.config.files import read_token
from cortex_core.config.loader import ConfigError
from cortex_core.config.neuron import DefaultModel, NeuronConfig
from cortex_core.errors import CortexError
from neuron import logs
from neuron.answers import EXCEPTION_HANDLERS
from neuron.devices import Devices
from neuron.edge import Edge
from neuron.metrics import Metrics
from neuron.models.hub import Hub
from neuron.models.options import wanted_of
from neuron.models.registry import Registry
from neuron.models.resolve import Resolver
from neuron.poison import Suspects
from neuron.routes import (
    chat,
    completions,
    devices,
    embeddings,
    metrics,
    models,
    node,
    render,
    tokens,
)
from neuron.supervisor import Supervisor
from neuron.worker_policy import Limits
from neuron.worker_process import WORKER_COMMAND

__all__ = ["Neuron", "check_default_models"]

_log = logs.get(__name__)


class Neuron:
    """Everything one neuron owns, and the order in which it starts and ends."""

    def __init__(
        self, config: NeuronConfig, worker_command: Sequence[str] = WORKER_COMMAND
    ) -> None:
        self.name = config.name or platform.node() or "neuron"
        self.config = config = replace(config, name=self.name)
        self.registry = Registry(
            self.name,
            config.engine,
            _resolver(config),
            cpu_memory_bytes=config.devices.memory_mb * 1024 * 1024,
        )
        self._worker_command = worker_command
        self._devices = Devices(config.devices.cpu_workers)
        self._supervisors: list[Supervisor] = []
        self.metrics = Metrics(
            self.registry.state, lambda: self.registry.feed.state, lambda: self._supervisors
        )
        self._defaults: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.asgi = self._assemble()

    async def start(self) -> None:
        """Workers and default loads are under way when this returns, not done."""
        devices = await self._devices.discover()
        limits = Limits(step_timeout_s=self.config.engine.step_timeout_s)
        changed = self.registry.changed
        suspects = Suspects()
        self._supervisors = [
            Supervisor(device, limits, changed, self._worker_command, suspects)
            for device in devices
        ]
        self.registry.attach({s.device.id: s for s in self._supervisors})
        self._devices.follow(devices, self.registry.read)
        for supervisor in self._supervisors:
            _log.info("device", id=supervisor.device.id, name=supervisor.device.name)
            supervisor.start()
        self._defaults = asyncio.create_task(self._load_defaults(), name="default models")

    async def drain(self) -> None:
        """Refuse what is new and let what runs end, for `drain_s` at most."""
        in_flight = self.registry.in_flight
        _log.info("draining", in_flight=in_flight, limit_s=self.config.drain_s)
        if not await self.registry.drain(self.config.drain_s):
            _log.warning("drain_s passed; what still ran was ended", in_flight=in_flight)

    async def stop(self) -> None:
        """End every task and every worker. May be called by several; all wait for the one end."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="stop")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self._devices.stop()
        if self._defaults is not None:
            self._defaults.cancel()
            await asyncio.gather(self._defaults, return_exceptions=True)
        await self.registry.close()
        await asyncio.gather(*(s.stop() for s in self._supervisors), return_exceptions=True)
        _log.info("stopped")

    async def _load_defaults(self) -> None:
        for model in self.config.default_models:
            await self._load_default(model)

    async def _load_default(self, model: DefaultModel) -> None:
        wanted = wanted_of(model)
        try:
            await self.registry.load(model.id, wanted)
        except CortexError as error:
            _log.error("a default model cannot be loaded", model=model.id, cause=error.message)
            self.registry.show_failed(model.id, wanted, error)

    def _assemble(self) -> ASGIApp:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            await self.start()
            try:
                yield
            finally:
                await self.stop()

        registry, config = self.registry, self.config
        app = Starlette(
            routes=[
                *node.routes(registry, config),
                *models.routes(registry, config),
                *chat.routes(registry, config, self.metrics.record),
                *render.routes(registry, config, self.metrics.record),
                *completions.routes(registry, config, self.metrics.record),
                *embeddings.routes(registry, config, self.metrics.record),
                *tokens.routes(registry, config, self.metrics.record),
                *metrics.routes(self.metrics),
                *devices.routes(registry, config),
            ],
            lifespan=lifespan,
            exception_handlers=EXCEPTION_HANDLERS,
        )
        app.router.redirect_slashes = False
        token = None if config.token_file is None else read_token(config.token_file)
        return Edge(app, token=token, max_body_bytes=config.max_body_mb * 1024 * 1024)


def check_default_models(config: NeuronConfig, source: str) -> None:
    """Refuse a default model that names no file. Raises ConfigError. (That the file is a sound
    model, or that a hub has it, is seen when it is loaded; a bad one is shown as failed.)"""
    resolver = _resolver(config)
    for index, model in enumerate(config.default_models):
        key = f"default_models[{index}].id"
        if resolver.is_of_hub(model.id):
            continue
        try:
            path = resolver.file_of(model.id)
        except CortexError as error:
            raise ConfigError(source, key, error.message) from None
        if not path.exists():
            raise ConfigError(source, key, f"no such file: {path}")


def _resolver(config: NeuronConfig) -> Resolver:
    models = config.models
    hubs = {source.name: Hub(source, is_offline=models.offline) for source in models.sources}
    return Resolver(models.local, [model.id for model in config.default_models], hubs)

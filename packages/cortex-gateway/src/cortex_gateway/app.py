"""Puts the gateway together: one `Gateway`, and the ASGI apps that it answers through."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Collection, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute

from cortex_core.config.gateway import GatewayConfig
from cortex_core.config.loader import ConfigError
from cortex_core.config.models import ModelsConfig, load_models
from cortex_core.errors import InvalidConfiguration
from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.conductor import Conductor, Policy
from cortex_core.fleet.events import OrderEnded
from cortex_gateway.admission import Admission
from cortex_gateway.cors import Cors
from cortex_gateway.dialects import dialects
from cortex_gateway.edge import Edge, Send
from cortex_gateway.errands import Errands
from cortex_gateway.fleet import Fleet
from cortex_gateway.guard import Guard
from cortex_gateway.keeping import Keeping
from cortex_gateway.ledger import Ledger
from cortex_gateway.metrics import Metrics
from cortex_gateway.orders import Order
from cortex_gateway.proxy import PATHS, Proxy
from cortex_gateway.reload import changes
from cortex_gateway.requestlog import RequestLog
from cortex_gateway.response_store import ResponseStore
from cortex_gateway.routes import ADMIN_ROUTES, METRICS_ROUTES, ROUTES
from cortex_gateway.routes.answers import EXCEPTION_HANDLERS
from cortex_gateway.statefile import StateFile
from cortex_gateway.upstream import Neuron, Upstream
from cortex_gateway.vigil import Receive
from cortex_gateway.watcher import Watcher

__all__ = ["Gateway"]

_log = logging.getLogger("cortex.gateway")


class Gateway:
    """Everything that lives as long as the gateway serves; an async context manager.

    Owns the watchers and everything that waits for the network or the disk. `app` is the public
    ASGI app, `metrics_app` and `admin_app` those of the listeners of these names. `read` reads the
    configuration again. Raises ConfigError.
    """

    def __init__(
        self, config: GatewayConfig, read: Callable[[], GatewayConfig] | None = None
    ) -> None:
        self.config = config
        self._read = read
        self._models = _models_of(config)
        settings = config.gateway
        folder = settings.state_dir
        file = None if folder is None else StateFile(Path(folder))
        self.responses = ResponseStore(
            None if folder is None else Path(folder),
            ttl_s=settings.responses_ttl_s,
            most_bytes=settings.responses_max_mb * 1024 * 1024,
        )
        self.guard = _guard_of(config)
        self.upstream = Upstream(config.neurons, settings.connect_timeout_s)
        names = [entry.name for entry in config.neurons]
        conductor = Conductor(Catalogue.of(self._models), Policy.of(config), names)
        self.metrics = Metrics()
        self.fleet = Fleet(conductor, self.upstream, settings.load_stall_s, self._order_ended)
        self.errands = Errands(self.fleet)
        self.keeping = Keeping(self.fleet, file)
        self.admission = Admission()
        level = logging.getLevelNamesMapping()[settings.log_level.upper()]
        self._log = RequestLog(sys.stderr, level)
        self.ledger = Ledger(self.fleet.known, self.metrics, self._log)
        self._proxy = Proxy(
            settings,
            self.fleet,
            self.upstream,
            self.admission,
            self.ledger.record,
            dialects(self.responses, keeps_attribution=settings.keep_attribution),
        )
        origins = settings.cors_origins
        self.app = Cors(self._answer, origins) if origins else self._answer
        own_admin = settings.admin_listen is not None
        self._rest = Edge(self._starlette(ROUTES if own_admin else [*ROUTES, *ADMIN_ROUTES]))
        self._admin_rest = Edge(self._starlette(ADMIN_ROUTES))
        self._metrics_rest = Edge(self._starlette(METRICS_ROUTES))
        self._watchers: dict[Neuron, asyncio.Task[None]] = {}
        self._reloading = asyncio.Lock()
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Gateway:
        async with contextlib.AsyncExitStack() as exits:
            exits.callback(self._log.flush)
            exits.push_async_callback(self.responses.close)
            await exits.enter_async_context(self.upstream)
            await exits.enter_async_context(self.fleet)
            await exits.enter_async_context(self.keeping)
            exits.push_async_callback(self._stop_watching)
            self._watch(self.upstream.neurons.values())
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exits.aclose()

    async def reload(self) -> list[str]:
        """Read the configuration again and change what is different in it, as dotted keys. Raises
        InvalidConfiguration, and then everything is as before."""
        async with self._reloading:
            try:
                if self._read is None:
                    raise InvalidConfiguration("this gateway was not started from a file")
                config, models = await asyncio.to_thread(_read_both, self._read)
                changed = changes(self.config, config, self._models, models)
                neurons = self.upstream.prepared(config.neurons)
                guard = _guard_of(config)
            except (ConfigError, InvalidConfiguration) as error:
                _log.error('"not reloaded" cause="%s"', error)
                raise InvalidConfiguration(f"nothing has changed: {error}") from None
            for name in await self._configure(config, models, neurons):
                if f"neurons.{name}" not in changed:  # its token is another one
                    changed.append(f"neurons.{name}")
            if not guard.is_like(self.guard):
                self.guard = guard
                changed.append("gateway.admin_token_file")
            _log.info('"reloaded" changed="%s"', ", ".join(changed))
            return changed

    async def _configure(
        self, config: GatewayConfig, models: ModelsConfig, neurons: dict[str, Neuron]
    ) -> list[str]:
        """Returns the names of the nodes that are asked in another way now."""
        self.config, self._models = config, models
        self._proxy.settings = config.gateway
        self.fleet.orders.stall_s = config.gateway.load_stall_s
        replaced = [
            name
            for name, neuron in self.upstream.neurons.items()
            if neurons.get(name, neuron) is not neuron
        ]
        # In one go: in between, requests would be sent to nodes that are no longer there.
        self.upstream.neurons = neurons
        gone = self._watch(neurons.values())
        for name in replaced:
            self.fleet.lost(name, "it is configured otherwise now")
        self.fleet.configured(Catalogue.of(models), Policy.of(config), neurons)
        await asyncio.gather(*gone, return_exceptions=True)
        return replaced

    def _watch(self, neurons: Collection[Neuron]) -> list[asyncio.Task[None]]:
        """Follow these neurons, and no others. Returns the others' watchers, which say nothing any
        more and are to be awaited."""
        gone = [task for neuron, task in self._watchers.items() if neuron not in neurons]
        self._watchers = {n: task for n, task in self._watchers.items() if n in neurons}
        for task in gone:
            task.cancel()
        for neuron in neurons:
            if neuron not in self._watchers:
                task = asyncio.create_task(
                    Watcher(neuron, self.fleet).run(), name=f"watch {neuron.name}"
                )
                self._watchers[neuron] = task
        return gone

    async def _stop_watching(self) -> None:
        await asyncio.gather(*self._watch(()), return_exceptions=True)

    def _order_ended(self, order: Order, end: OrderEnded) -> None:
        self.ledger.record_order(order, end)

    # answering

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] in PATHS:
                await self._proxy(scope, receive, send)
            else:
                await self._rest(scope, receive, send)
        else:
            await _answer_protocol(scope, receive, send)

    async def metrics_app(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        await _answer(self._metrics_rest, scope, receive, send)

    async def admin_app(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        await _answer(self._admin_rest, scope, receive, send)

    def _starlette(self, routes: Sequence[BaseRoute]) -> Starlette:
        app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
        app.router.redirect_slashes = False
        app.state.gateway = self
        return app


async def _answer(app: Edge, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await app(scope, receive, send)
    else:
        await _answer_protocol(scope, receive, send)


async def _answer_protocol(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Lifespan events, which need no work here, and web sockets, which are not served."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


def _guard_of(config: GatewayConfig) -> Guard:
    return Guard(config.gateway.admin_token_file, config.gateway.cors_origins)


def _models_of(config: GatewayConfig) -> ModelsConfig:
    path = config.gateway.models
    if path is None:
        return ModelsConfig()
    return load_models(Path(path), [entry.name for entry in config.neurons])


def _read_both(read: Callable[[], GatewayConfig]) -> tuple[GatewayConfig, ModelsConfig]:
    config = read()
    return config, _models_of(config)

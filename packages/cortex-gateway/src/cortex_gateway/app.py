"""Puts the gateway together: one `Gateway`, and the two ASGI apps that it answers through."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute

from cortex_core.config.gateway import GatewayConfig
from cortex_gateway.admission import Admission
from cortex_gateway.edge import Edge, Send
from cortex_gateway.fleet import Fleet
from cortex_gateway.ledger import Ledger
from cortex_gateway.metrics import Metrics
from cortex_gateway.proxy import PATHS, Proxy
from cortex_gateway.requestlog import RequestLog
from cortex_gateway.routes import ROUTES
from cortex_gateway.routes.answers import EXCEPTION_HANDLERS
from cortex_gateway.routes.health import METRICS_ROUTES
from cortex_gateway.upstream import Upstream
from cortex_gateway.vigil import Receive
from cortex_gateway.watcher import Watcher

__all__ = ["Gateway"]


class Gateway:
    """Everything that lives as long as the gateway serves; an async context manager.

    Owns the watchers and the upstream session. `app` is the public ASGI app, `metrics_app` the
    one for the metrics listener.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        settings = config.gateway
        self.upstream = Upstream(config.neurons, settings.connect_timeout_s)
        self.fleet = Fleet(entry.name for entry in config.neurons)
        self.admission = Admission()
        self.metrics = Metrics()
        level = logging.getLevelNamesMapping()[settings.log_level.upper()]
        self._log = RequestLog(sys.stderr, level)
        ledger = Ledger(self.fleet.known, self.metrics, self._log)
        self._proxy = Proxy(settings, self.fleet, self.upstream, self.admission, ledger.record)
        self._rest = Edge(self._starlette(ROUTES))
        self._metrics_rest = Edge(self._starlette(METRICS_ROUTES))
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Gateway:
        await self.upstream.__aenter__()
        for neuron in self.upstream.neurons.values():
            watcher = Watcher(neuron, self.fleet)
            self._tasks.append(asyncio.create_task(watcher.run(), name=f"watch {neuron.name}"))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.upstream.__aexit__(*exc)
        self._log.flush()

    async def app(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
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
        if scope["type"] == "http":
            await self._metrics_rest(scope, receive, send)
        else:
            await _answer_protocol(scope, receive, send)

    def _starlette(self, routes: Sequence[BaseRoute]) -> Starlette:
        app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
        app.router.redirect_slashes = False
        app.state.gateway = self
        return app


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

"""Runs a gateway in this process: sockets, hypercorn on uvloop, signals, and the way out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config as HypercornConfig

from cortex_core.config.gateway import GatewayConfig, GatewaySection
from cortex_core.config.loader import ConfigError, parse_address
from cortex_core.errors import CortexError
from cortex_gateway.app import Gateway
from cortex_gateway.hypercorn_mends import mend

__all__ = ["serve"]

BACKLOG = 1024

LISTENERS = {"gateway": "listen", "metrics": "metrics_listen", "admin": "admin_listen"}
"""What is served → its key in [gateway]."""

OVER_TLS = frozenset({"gateway", "admin"})
"""What is served over TLS where there is a certificate. Metrics are for scrapers in the house."""

# After the drain, for connections that neither finish nor close.
CLOSE_S = 2.0


def serve(config: GatewayConfig, read: Callable[[], GatewayConfig] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. `read`: the configuration as it is
    then; SIGHUP has it read and put in force.

    Prints where it listens, then logs to stderr. 0: drained and stopped. 2: it could not start;
    the reason is on stderr.
    """
    _configure_logging(config.gateway.log_level)
    mend()
    listeners: dict[str, socket.socket] = {}
    try:
        for what, key in LISTENERS.items():
            address = getattr(config.gateway, key)
            if address is not None:
                listeners[what] = _bind(key, address)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(Gateway(config, read), listeners))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        for listener in listeners.values():
            listener.close()
    return 0


async def _serve(gateway: Gateway, listeners: dict[str, socket.socket]) -> None:
    stopping = asyncio.Event()
    hang_up = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with gateway:

        def on_signal() -> None:
            """The first begins the drain, the second cuts it short."""
            if stopping.is_set():
                gateway.admission.hurry()
            stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        loop.add_signal_handler(signal.SIGHUP, hang_up.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # see `hold_reloads`
        # What was imported lives for ever; without it, collections are short, and short pauses
        # are what the gap between two tokens is made of.
        gc.collect()
        gc.freeze()
        settings = gateway.config.gateway
        secure = OVER_TLS if settings.tls_cert is not None else frozenset[str]()
        for what, listener in listeners.items():
            print(f"{what} listening on {_url(listener, what in secure)}", flush=True)
        closing = asyncio.Event()
        apps = {
            "gateway": gateway.app,
            "metrics": gateway.metrics_app,
            "admin": gateway.admin_app,
        }
        servers = [
            asyncio.create_task(
                _run_server(
                    apps[what], listener, closing.wait, settings if what in secure else None
                )
            )
            for what, listener in listeners.items()
        ]
        reloading = asyncio.create_task(_reload_on(hang_up, gateway))
        waiting = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({waiting, *servers}, return_when=asyncio.FIRST_COMPLETED)
            for server in servers:
                if server.done():  # before its time, so with an exception
                    server.result()
            await gateway.admission.drain(gateway.config.gateway.drain_s)
            closing.set()
            loop.set_exception_handler(_ignore_cancellations)
            await asyncio.wait(servers, timeout=CLOSE_S)
        finally:
            for task in (waiting, reloading, *servers):
                task.cancel()
            # What hypercorn raises now is about connections that would not close, and too late.
            await asyncio.gather(waiting, reloading, *servers, return_exceptions=True)


async def _reload_on(hang_up: asyncio.Event, gateway: Gateway) -> None:
    """Each SIGHUP reloads; the log says what came of it."""
    while True:
        await hang_up.wait()
        hang_up.clear()
        with contextlib.suppress(CortexError):
            await gateway.reload()


def _ignore_cancellations(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Python 3.11's streams report the cancellation of a connection's task as an error."""
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)


async def _run_server(
    app: Callable[..., Awaitable[None]],
    sock: socket.socket,
    until: Callable[[], Awaitable[Any]],
    tls: GatewaySection | None,
) -> None:
    config = HypercornConfig()
    if tls is not None:
        config.certfile, config.keyfile = tls.tls_cert, tls.tls_key
    config.bind = [f"fd://{socket.dup(sock.fileno())}"]
    config.backlog = BACKLOG
    config.accesslog = None  # every request has its own line already
    config.errorlog = logging.getLogger("cortex.server")
    config.include_server_header = False
    config.graceful_timeout = CLOSE_S / 2
    # Longer than the 60 s for which common proxies keep idle connections, so that the other end
    # is the one that closes them; and no end after a number of requests.
    config.keep_alive_timeout = 75
    config.keep_alive_max_requests = sys.maxsize
    # Agents send long headers; what is beyond this is not one.
    config.h11_max_incomplete_size = 64 * 1024
    await hypercorn_serve(app, config, shutdown_trigger=until)  # type: ignore[arg-type]


def _bind(key: str, address: str) -> socket.socket:
    """A bound, listening socket. Raises ConfigError."""
    host, port = parse_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError(f"gateway.{key}", None, f"cannot listen on {address}: {why}") from None
    return listener


def _url(listener: socket.socket, is_tls: bool) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Formatter(logging.Formatter):
    """`time level logger "message" key=value …`, the time in UTC; see also `requestlog`."""

    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        when = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"
        line = f"{when} {record.levelname.lower()} {record.name} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root = logging.getLogger("cortex")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(level.upper())
    logging.getLogger("cortex.server").setLevel(logging.WARNING)

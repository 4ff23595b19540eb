"""Serve a neuron over HTTP until a signal, then drain and end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config

from cortex_core.config.loader import ConfigError, parse_address
from neuron import logs
from neuron.app import Neuron
from neuron.hypercorn_mends import mend

__all__ = ["bind", "run"]

_log = logs.get(__name__)
_COLLECTIONS = (10_000, 10, 10)
_FLUSH_S = 2.0  # after the drain, for answers to leave their buffers
_END_S = 1.0  # after that, for hypercorn to end what is left


def bind(listen: str) -> socket.socket:
    """A listening socket; made before anything is started, so that a taken port starts nothing.
    Raises ConfigError."""
    host, port = parse_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it; without it small chunks wait for the peer's ACKs.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        problem = f"cannot listen on {listen}: {error.strerror or error}"
        raise ConfigError("listen", None, problem) from None
    return listener


def _address(listener: socket.socket) -> str:
    """`host:port` as a client would write it."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def run(neuron: Neuron, listener: socket.socket, on_listening: Callable[[str], None]) -> bool:
    """Serve until SIGTERM or SIGINT; then drain. A second signal ends the drain at once.

    `on_listening` is called with the http:// URL when requests are answered. False: everything is
    stopped, but hypercorn still waits for a client that never reads its answer; only the end of
    the process ends that.
    """
    url = f"http://{_address(listener)}"
    drained = asyncio.Event()
    drains: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if not drains:
            drains.append(asyncio.create_task(neuron.drain(), name="drain"))
            # However it ends: one that is cancelled before its first step runs nothing of its own.
            drains[0].add_done_callback(lambda _: drained.set())
        else:
            drains[0].cancel()

    loop.set_exception_handler(_on_loop_error)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    async def until_drained() -> None:
        on_listening(url)
        await drained.wait()
        # Event streams never end by themselves, and hypercorn waits for every response.
        neuron.registry.feed.close()

    mend()
    # What was imported lives for ever, and what a body of megabytes is read into is no garbage yet:
    # looking through it for cycles ten times over held everybody's tokens up for a second.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)
    server = asyncio.create_task(
        serve(neuron.asgi, _hypercorn(listener), shutdown_trigger=until_drained),  # pyright: ignore[reportArgumentType]
        name="server",
    )
    try:
        stop = asyncio.create_task(drained.wait())
        await asyncio.wait({server, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if drained.is_set():
            await asyncio.wait({server}, timeout=_FLUSH_S + _END_S)
        if server.done():
            server.result()
            return True
        _log.warning("clients that do not read their answers are cut off")
        return False
    finally:
        await neuron.stop()
        await asyncio.gather(*drains, return_exceptions=True)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Python 3.11 reports a connection that was cancelled at shutdown as an error; it is none.
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)


def _hypercorn(listener: socket.socket) -> Config:
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.backlog = 2048
    # Longer than clients keep idle connections, so that they and not we close them: a request
    # sent into a connection we are closing is lost.
    config.keep_alive_timeout = 120
    config.keep_alive_max_requests = 10**9
    config.graceful_timeout = _FLUSH_S
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn")
    return config

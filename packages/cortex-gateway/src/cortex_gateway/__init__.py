"""The cortex gateway: one OpenAI-compatible URL over a fleet of neurons."""

import signal
from collections.abc import Callable

from cortex_core.config.gateway import GatewayConfig

__all__ = ["__version__", "hold_reloads", "serve"]

__version__ = "0.1.0"


def hold_reloads() -> None:
    """From now on a SIGHUP waits until `serve` can follow it, and does not end the process. To be
    called before the configuration is read: what changes after that is then read again."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def serve(config: GatewayConfig, read: Callable[[], GatewayConfig] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. `read` reads the configuration again,
    for a reload. See `cortex_gateway.serving`."""
    from cortex_gateway.serving import serve as run  # late: the server's imports take a while

    return run(config, read)

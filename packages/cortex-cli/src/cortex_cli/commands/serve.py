"""`cortex serve`: the gateway in the foreground."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cortex_cli.terminal import note
from cortex_core.config.gateway import GatewayConfig, load_gateway_config

__all__ = ["serve"]

_INSTALLED = Path("/etc/cortex/cortex.toml")


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help=f"cortex.toml. [default: {_INSTALLED} where it exists, else environment only]",
)
@click.option("--listen", metavar="HOST:PORT", help="Overrides gateway.listen.")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Overrides gateway.metrics_listen.")
def serve(path: Path | None, listen: str | None, metrics_listen: str | None) -> None:
    """Run the gateway until SIGTERM or Ctrl-C; SIGHUP has it read its configuration again."""
    from cortex_gateway import hold_reloads
    from cortex_gateway import serve as run

    hold_reloads()
    if path is None and _INSTALLED.exists():
        path = _INSTALLED
    flags = {"gateway.listen": listen, "gateway.metrics_listen": metrics_listen}
    config = load_gateway_config(path, flags=flags)

    def read() -> GatewayConfig:
        return load_gateway_config(path, flags=flags)

    if not config.neurons:
        note("no neuron is configured: every model will be unknown ([[neurons]] in cortex.toml)")
    sys.exit(run(config, read))

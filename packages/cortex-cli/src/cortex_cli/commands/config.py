"""`cortex config check`: what the daemons do with a file before they start, and no more."""

from __future__ import annotations

from pathlib import Path

import click

from cortex_cli.terminal import plain
from cortex_core.config.gateway import GatewayConfig, load_gateway_config
from cortex_core.config.models import load_models
from cortex_core.config.neuron import NeuronConfig, load_neuron_config

__all__ = ["config"]


@click.group()
def config() -> None:
    """Look at configuration files."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--neuron", is_flag=True, help="FILE is a neuron.toml, not a cortex.toml.")
def check(file: Path, neuron: bool) -> None:
    """Check FILE, with this environment's variables applied, as at start-up."""
    said = _neuron(load_neuron_config(file)) if neuron else _gateway(load_gateway_config(file))
    click.echo(plain(f"{file}: ok; {said}"))


def _gateway(config: GatewayConfig) -> str:
    names = ", ".join(neuron.name for neuron in config.neurons) or "none"
    said = f"gateway on {config.gateway.listen}, neurons: {names}"
    if config.gateway.models is None:
        return said
    models = load_models(Path(config.gateway.models)).models
    return f"{said}, models: {', '.join(model.id for model in models) or 'none'}"


def _neuron(config: NeuronConfig) -> str:
    models = ", ".join(model.id for model in config.default_models) or "none"
    return f"neuron on {config.listen}, models at start: {models}"

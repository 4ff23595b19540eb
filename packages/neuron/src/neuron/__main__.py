"""The `neuron` command."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

import neuron
from cortex_core.config.loader import ConfigError
from cortex_core.config.neuron import DefaultModel, NeuronConfig, load_neuron_config
from neuron import logs

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after a clean end, 1 when serving failed, 2 for a configuration that was refused."""
    given = _parser().parse_args(arguments)
    try:
        config = _configuration(given)
        # Imported late: `--help` and a refused file need none of it.
        from neuron import serving
        from neuron.app import Neuron, check_default_models

        check_default_models(config, str(given.config or "configuration"))
        if given.check_config:
            print("the configuration is good")
            return 0
        logs.configure(config.log_level)
        listener = serving.bind(config.listen)
    except ConfigError as error:
        print(f"neuron: {error}", file=sys.stderr)
        return 2

    daemon = Neuron(config)

    def announce(url: str) -> None:
        print(f"neuron {daemon.name} listening on {url}", flush=True)

    try:
        with asyncio.Runner() as runner:
            if not runner.run(serving.run(daemon, listener, announce)):
                logging.shutdown()
                os._exit(0)
    except KeyboardInterrupt:  # before the signal handlers were in place
        return 130
    except Exception:
        logs.get(__name__).exception("the neuron has failed")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neuron", description="Serve GGUF models with llama.cpp, one worker per device."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a neuron.toml")
    parser.add_argument("--listen", metavar="HOST:PORT", help="port 0 picks a free one")
    parser.add_argument("--name", help="this node's name; the host's by default")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="ID_OR_PATH",
        help="load this at start, besides [[default_models]]; may be repeated",
    )
    parser.add_argument("--cpu-workers", type=int, metavar="N", help="how many CPU devices")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument(
        "--check-config", action="store_true", help="check the configuration and end"
    )
    parser.add_argument("--version", action="version", version=f"neuron {neuron.__version__}")
    return parser


def _configuration(given: argparse.Namespace) -> NeuronConfig:
    flags = {
        "listen": given.listen,
        "name": given.name,
        "devices.cpu_workers": given.cpu_workers,
        "log_level": given.log_level,
    }
    config = load_neuron_config(given.config, flags=flags)
    models = list(config.default_models)
    known = {model.id for model in models}
    for text in given.model:
        # A file named on the command line is meant relative to where the command was given.
        name = str(Path(text).absolute()) if Path(text).is_file() else text
        if name not in known:
            known.add(name)
            models.append(DefaultModel(id=name))
    return replace(config, default_models=models)


if __name__ == "__main__":
    sys.exit(main())

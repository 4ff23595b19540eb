"""A benchmark's command line."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

__all__ = ["run", "scenario_parser"]


def scenario_parser(
    module: str, description: str | None, scenarios: Sequence[str], rounds: int
) -> argparse.ArgumentParser:
    """Reads `scenarios`, of these, or all where none is given; and `rounds`, so many by default."""

    def scenario(name: str) -> str:
        if name not in scenarios:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(scenarios)}")
        return name

    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scenarios", nargs="*", type=scenario, default=list(scenarios), metavar="SCENARIO",
        help=f"of {', '.join(scenarios)}; default: all",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def run(main: Coroutine[Any, Any, None]) -> None:
    """To its end, or to a SIGTERM, which ends what it has started as Ctrl-C does: a server that is
    stopped when its parent dies would stay for ever."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    asyncio.run(main)

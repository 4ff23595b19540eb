"""The engine against `llama-server`, scenario by scenario, in one run on one machine.

    python -m tests.bench.engine [SCENARIO ...] [--rounds N]

In each scenario the servers are measured in turn, A B A B …, each alone on the machine: the others
are stopped with SIGSTOP, so that their idle threads take no time from it. A ratio is the median of
the rounds' ratios.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import command, peers
from tests.bench.engine import agents, burst, decode, gap, memory, swap
from tests.bench.engine.servers import ServerFailed

_ONE_TABLE = {
    "burst": burst.measure,
    "gap": gap.measure,
    "agents": agents.measure,
    "swap": swap.measure,
    "memory": memory.measure,
}
SCENARIOS = ("burst", "gap", "agents", "decode", "swap", "memory")


async def _tables(
    scenario: str, binary: Path, arguments: argparse.Namespace
) -> AsyncIterator[Table]:
    if scenario != "decode":
        yield await _ONE_TABLE[scenario](binary, arguments.rounds)
        return
    for case in decode.CASES:
        if arguments.only in case.title:
            yield await decode.measure(
                case, binary, arguments.rounds, arguments.tokens, arguments.widths
            )


async def _print(arguments: argparse.Namespace) -> None:
    binary, console = peers.llama_server(), Console(width=None if sys.stdout.isatty() else 120)
    for scenario in arguments.scenarios:
        async for table in _tables(scenario, binary, arguments):
            console.print(table)


def main() -> None:
    parser = command.scenario_parser("tests.bench.engine", __doc__, SCENARIOS, rounds=3)
    only = parser.add_argument_group("decode only")
    only.add_argument("--tokens", type=int, help="per stream; default: the case's own")
    only.add_argument("--only", default="", help="cases whose title contains this")
    only.add_argument(
        "--widths", type=int, nargs="+", default=list(decode.WIDTHS), metavar="STREAMS"
    )
    try:
        command.run(_print(parser.parse_args()))
    except ServerFailed as failure:
        raise SystemExit("\n".join([str(failure), *failure.__notes__])) from None


if __name__ == "__main__":
    main()

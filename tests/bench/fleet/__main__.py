"""Routers of conversations, and a gateway's probes while a crowd waits.

    python -m tests.bench.fleet [conversations|parked ...] [--rounds N]

Every figure of a table is from one run. The backends are started anew for each router and round, so
that nobody finds what another has left in their caches.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench import command
from tests.bench.conversations import RECALL_HEADINGS, recall_cells
from tests.bench.engine import prompts
from tests.bench.engine.rounds import new_table
from tests.bench.fleet import parked
from tests.bench.fleet.backends import ROUTERS, Backends, LlamaServers, Neurons, model
from tests.bench.fleet.conversations import Run, play, script

SCENARIOS = ("conversations", "parked")

# A gateway of ours has no llama-servers behind it, and sglang-router adds parameters to requests
# (`return_hidden_states` and others) that a neuron does not know and says so; nginx has either.
PAIRS: tuple[tuple[str, type[Neurons] | type[LlamaServers]], ...] = (
    ("cortex", Neurons),
    ("nginx, round-robin", Neurons),
    ("nginx, round-robin", LlamaServers),
    ("sglang-router, cache-aware", LlamaServers),
)


async def conversations(rounds: int) -> Table:
    runs: dict[tuple[str, str], list[Run]] = {}
    for round_ in range(rounds):
        with prompts.opened(model()) as tokenizer:
            turns = script(tokenizer, f"round {round_}")
        for router, kind in PAIRS:
            backends: Backends = kind()
            with (
                tempfile.TemporaryDirectory(prefix="bench-fleet-") as folder,
                backends.running(Path(folder)),
                ROUTERS[router](backends.urls, Path(folder)) as url,
            ):
                run = await play(url, backends.model, turns)
            runs.setdefault((router, backends.name), []).append(run)
    table = new_table(
        "12 conversations of 6 turns over 3 nodes, all at once",
        "router", "nodes", *RECALL_HEADINGS, "TTFT s", "of later turns", "ours is quicker", "all s",
    )  # fmt: skip
    ours = median(median(run.later_s) for run in runs["cortex", "neurons"])
    for (router, nodes), results in runs.items():
        later = median(median(run.later_s) for run in results)
        table.add_row(
            router,
            nodes,
            *recall_cells(results),
            f"{median(median(run.first_s) for run in results):.2f}",
            f"{later:.2f}",
            f"{later / ours:.1f} x",
            f"{median(run.took_s for run in results):.0f}",
        )
    return table


async def _print(arguments: argparse.Namespace) -> None:
    console = Console(width=None if os.isatty(1) else 120)
    for scenario in arguments.scenarios:
        console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        if scenario == "conversations":
            console.print(await conversations(arguments.rounds))
        else:
            console.print(await parked.measure())


def main() -> None:
    parser = command.scenario_parser("tests.bench.fleet", __doc__, SCENARIOS, rounds=1)
    command.run(_print(parser.parse_args()))


if __name__ == "__main__":
    main()

"""Routers of conversations, and a gateway's probes while a crowd waits.

    python -m tests.bench.fleet [conversations|parked ...] [--rounds N]

Every figure of a table is from one run. The backends are started anew for each router and round, so
that nobody finds what another has left in their caches.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

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
            with tempfile.TemporaryDirectory(prefix="bench-fleet-") as folder:
                async with (
                    backends.running(Path(folder)),
                    ROUTERS[router](backends.urls, Path(folder)) as url,
                ):
                    run = await play(url, backends.model, turns)
            runs.setdefault((router, backends.name), []).append(run)
    table = new_table(
        "12 conversations of 6 turns over 3 nodes, all at once",
        "router", "nodes", "prompt tokens", "known", "recomputed", "%",
        "TTFT s", "of later turns", "ours is quicker", "all s",
    )  # fmt: skip
    ours = median(median(run.later_s) for run in runs["cortex", "neurons"])
    for (router, nodes), results in runs.items():
        later = median(median(run.later_s) for run in results)
        table.add_row(
            router,
            nodes,
            f"{median(run.prompt_tokens for run in results):,.0f}",
            f"{median(run.known_tokens for run in results):,.0f}",
            f"{median(run.recomputed_tokens for run in results):,.0f}",
            f"{median(run.recomputed_percent for run in results):.1f}",
            f"{median(median(run.first_s) for run in results):.2f}",
            f"{later:.2f}",
            f"{later / ours:.1f} x",
            f"{median(run.took_s for run in results):.0f}",
        )
    return table


async def _print(arguments: argparse.Namespace) -> None:
    # Servers that are stopped when their parent dies would stay for ever.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console = Console(width=None if os.isatty(1) else 120)
    for scenario in arguments.scenarios or SCENARIOS:
        console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        if scenario == "conversations":
            console.print(await conversations(arguments.rounds))
        else:
            console.print(await parked.measure())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    for scenario in arguments.scenarios:
        if scenario not in SCENARIOS:
            parser.error(f"{scenario!r} is none of {', '.join(SCENARIOS)}")
    try:
        asyncio.run(_print(arguments))
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


if __name__ == "__main__":
    main()

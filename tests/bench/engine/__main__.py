"""Decode throughput at several widths against `llama-server`, in one run.

    python -m tests.bench.engine [--rounds N] [--only CASE] [--tokens N] [--widths N ...]

For each model and width the two servers answer in turn, A B A B …, each alone on the machine: the
other is stopped with SIGSTOP, so that its idle threads cannot take the other's time. The figure is
completion tokens per second over the whole burst, median of the rounds; the ratio is the median of
the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import peers
from tests.bench.engine.servers import LlamaServer, Neuron, resident_bytes, run_streams

WIDTHS = (1, 8, 16)
PARALLEL = 16
GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 1}


@dataclass(frozen=True)
class Case:
    """One model and how it is run. `context` is tokens per sequence."""

    title: str
    preset: str
    kind: str
    threads: int
    context: int
    tokens: int
    sampling: dict[str, Any]


CASES = (
    Case("qwen3-0.6b Q4_K_M, greedy", "qwen3-0.6b", "Q4_K_M", 2, 512, 96, GREEDY),
    Case("qwen3-0.6b Q4_K_M, sampled", "qwen3-0.6b", "Q4_K_M", 2, 512, 96, SAMPLED),
    Case("2-layer toy F16, greedy", "toy", "F16", 1, 512, 256, GREEDY),
)


async def measure(
    case: Case, binary: Path, rounds: int, tokens: int | None, widths: list[int]
) -> Table:
    path = peers.model(case.preset, case.kind)
    table = Table(title=f"{case.title}, {case.threads} threads", title_justify="left")
    for heading in ("streams", "neuron tok/s", "llama-server tok/s", "ratio", "lowest to highest"):
        table.add_column(heading, justify="right")
    ours = Neuron(path, PARALLEL, case.context, case.threads)
    theirs = LlamaServer(binary, path, PARALLEL, case.context, case.threads)
    async with ours.running(), theirs.running():
        for width in widths:
            rates: dict[str, list[float]] = {ours.name: [], theirs.name: []}
            for round_ in range(-1, rounds):
                for server, other in ((ours, theirs), (theirs, ours)):
                    prompts = [f"Round {round_}, stream {index}: hello." for index in range(width)]
                    with _stopped(other.pids):
                        streams = await run_streams(
                            server, prompts, tokens or case.tokens, case.sampling
                        )
                    if round_ >= 0:  # the first round only warms up
                        total = sum(stream.tokens for stream in streams)
                        rates[server.name].append(total / max(x.end_s for x in streams))
            ratios = [a / b for a, b in zip(rates[ours.name], rates[theirs.name], strict=True)]
            table.add_row(
                str(width),
                f"{median(rates[ours.name]):.1f}",
                f"{median(rates[theirs.name]):.1f}",
                f"{median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
            )
        table.caption = " · ".join(
            f"{server.name} resident {resident_bytes(server.pids) / 2**20:.0f} MiB"
            for server in (ours, theirs)
        )
    return table


@contextmanager
def _stopped(pids: list[int]):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, help="per stream; default: the case's own")
    parser.add_argument("--only", default="", help="cases whose title contains this")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), metavar="STREAMS")
    arguments = parser.parse_args()
    binary = peers.llama_server()
    console = Console()
    for case in CASES:
        if arguments.only in case.title:
            console.print(
                asyncio.run(
                    measure(case, binary, arguments.rounds, arguments.tokens, arguments.widths)
                )
            )


if __name__ == "__main__":
    main()

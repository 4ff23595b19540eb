"""Resident memory: of the parent and its worker together against the peer's one process."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from rich.table import Table

from tests.bench import peers
from tests.bench.engine import prompts
from tests.bench.engine.rounds import all_running, new_table, take_turns
from tests.bench.engine.servers import LlamaServer, Neuron, Server, Setup
from tests.bench.engine.streams import run_streams
from tests.bench.processes import resident_bytes

CASES = (("qwen3-0.6b", "Q4_K_M", 2), ("toy", "F16", 1))
PARALLEL = 16
CONTEXT = 512
TOKENS = 96
MIB = 2**20


async def measure(binary: Path, rounds: int) -> Table:
    table = new_table(
        f"memory: resident MiB, {PARALLEL} sequences of {CONTEXT} tokens",
        "model", "neuron", "after a burst", "llama-server", "after a burst", "difference",
    )  # fmt: skip
    for preset, kind, threads in CASES:
        setup = Setup(peers.model(preset, kind), PARALLEL, CONTEXT, threads)
        servers = [Neuron(setup), LlamaServer(binary, setup)]
        loaded: dict[str, int] = {}

        async def after_load(server: Server, loaded: dict[str, int] = loaded) -> None:
            loaded[server.name] = resident_bytes(server.pids)

        async def after_burst(server: Server, round_: int) -> int:
            chats = [prompts.say(f"Round {round_}, stream {i}: hello.") for i in range(PARALLEL)]
            await run_streams(server, chats, TOKENS)
            return resident_bytes(server.pids)

        async with all_running(servers):
            results = await take_turns(servers, rounds, after_burst, after_load)
        cells: list[str] = []
        for server, result in zip(servers, results, strict=True):
            cells += [f"{loaded[server.name] / MIB:.0f}", f"{median(result) / MIB:.0f}"]
        ours, theirs = map(median, results)
        table.add_row(f"{preset} {kind}", *cells, f"{(ours - theirs) / MIB:+.0f}")
    return table

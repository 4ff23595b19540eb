"""Model A is loaded and only one fits; B is asked, then A again. How long until each answers?

Ours is told to unload and to load, as the gateway tells it; the peer's router does both when a
request names the other model. Both files are in the page cache.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from rich.table import Table

from tests.bench import peers
from tests.bench.engine import prompts
from tests.bench.engine.rounds import all_running, new_table, ratio_cells, take_turns
from tests.bench.engine.servers import Neuron, Router, Server, Setup
from tests.bench.engine.streams import Client

CONTEXT = 4096


async def measure(binary: Path, rounds: int) -> Table:
    one, other = peers.model_pair("qwen3-0.6b", "Q4_K_M")
    setup = Setup(one, 1, CONTEXT, 2)
    ours, theirs = Neuron(setup), Router(binary, setup)
    servers: list[Server] = [ours, theirs]

    async def swap(server: Server, round_: int) -> tuple[float, float]:
        """Seconds until B has answered, and until A has answered again."""
        chat = prompts.say(f"Round {round_}: are you there?")
        async with Client.of(server) as client:
            begin_s = time.perf_counter()
            times: list[float] = []
            for leaving, coming in ((one, other), (other, one)):
                if isinstance(server, Neuron):
                    await server.post("/models/unload", model=str(leaving), wait=True)
                    await server.post("/models/load", model=str(coming), wait=True)
                times.append((await client.ask(chat, 1, model=coming)).end_s)
        return times[0] - begin_s, times[1] - times[0]

    async def warm_up(server: Server) -> None:
        async with Client.of(server) as client:
            await client.ask(prompts.say("Are you there?"), 1, model=one)
        await swap(server, -1)

    async with all_running(servers):
        results = await take_turns(servers, rounds, swap, warm_up)

    size_mb = one.stat().st_size / 1e6
    table = new_table(
        f"swap: two models of {size_mb:.0f} MB, one at a time", "server", "A to B s", "B to A s"
    )
    for server, result in zip(servers, results, strict=True):
        there, back = zip(*result, strict=True)
        table.add_row(server.name, f"{median(there):.2f}", f"{median(back):.2f}")
    ratio, span = ratio_cells(*([sum(times) for times in result] for result in results))
    table.caption = f"A to B to A: {ratio} of theirs ({span})"
    return table

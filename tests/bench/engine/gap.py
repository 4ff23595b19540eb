"""Four streams run; a long prompt arrives. How long do the four stand still, and what does it
cost the newcomer that they do not?
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.table import Table

from tests.bench import peers
from tests.bench.engine import prompts
from tests.bench.engine.rounds import all_running, new_table, ratio_cells, take_turns
from tests.bench.engine.servers import LlamaServer, Neuron, Server, ServerFailed, Setup
from tests.bench.engine.streams import Client, Stream

STREAMS = 4
PROMPT_TOKENS = 3700
CONTEXT = 5120
WARM_CHUNKS = 16  # the four decode together, past whatever their own prompts did
ANSWER_TOKENS = 4000  # more than they can say while the newcomer waits


@dataclass(frozen=True)
class Arrival:
    gap_s: float
    ttft_s: float
    prompt_tokens: int


async def measure(binary: Path, rounds: int) -> Table:
    model = peers.model("qwen3-0.6b", "Q4_K_M")
    setup = Setup(model, STREAMS + 1, CONTEXT, 2)
    servers = [Neuron(setup), LlamaServer(binary, setup)]
    with prompts.opened(model) as tokenizer:

        async def arrive(server: Server, round_: int) -> Arrival:
            long = prompts.say(prompts.prose(tokenizer, PROMPT_TOKENS, f"long {round_}"))
            return await _arrive(server, round_, long)

        async with all_running(servers):
            results = await take_turns(servers, rounds, arrive)

    ours, theirs = results
    table = new_table(
        f"gap: {STREAMS} running streams, a prompt of {ours[0].prompt_tokens:,} tokens arrives",
        "server", "longest gap s", "newcomer's TTFT s",
    )  # fmt: skip
    for server, result in zip(servers, results, strict=True):
        gap_s = median(arrival.gap_s for arrival in result)
        ttft_s = median(arrival.ttft_s for arrival in result)
        table.add_row(server.name, f"{gap_s:.3f}", f"{ttft_s:.2f}")
    gap, gap_span = ratio_cells([a.gap_s for a in theirs], [a.gap_s for a in ours])
    ttft, ttft_span = ratio_cells([a.ttft_s for a in ours], [a.ttft_s for a in theirs])
    table.caption = f"gap: {gap} times shorter ({gap_span}) · TTFT: {ttft} of theirs ({ttft_span})"
    return table


async def _arrive(server: Server, round_: int, long: prompts.Conversation) -> Arrival:
    async with Client.of(server) as client:
        streams = [Stream(time.perf_counter()) for _ in range(STREAMS)]
        reading = [
            asyncio.create_task(
                client.read(stream, prompts.say(f"Round {round_}, stream {index}."), ANSWER_TOKENS)
            )
            for index, stream in enumerate(streams)
        ]
        try:
            await asyncio.gather(*(stream.arrived(WARM_CHUNKS) for stream in streams))
            newcomer = await client.ask(long, 1)
            if any(task.done() for task in reading):
                raise ServerFailed(f"{server.name}: a stream ended before the newcomer had a token")
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
    while not await server.is_idle():  # the next round must not meet what this one left
        await asyncio.sleep(0.05)
    span = (newcomer.sent_s, newcomer.arrivals[0])
    gap_s = max(stream.longest_gap_s(*span) for stream in streams)
    return Arrival(gap_s, newcomer.ttft_s, newcomer.counts.prompt_tokens)

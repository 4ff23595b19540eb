"""Eight cold chats that share one long system prompt arrive at once: how long to the first token.

What an editor does when it opens a project. Every round has a prompt nobody has seen.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from rich.table import Table

from tests.bench import peers
from tests.bench.engine import prompts
from tests.bench.engine.rounds import all_running, new_table, ratio_cells, take_turns
from tests.bench.engine.servers import LlamaServer, Neuron, Server, Setup
from tests.bench.engine.streams import Stream, run_streams

CHATS = 8
SYSTEM_TOKENS = 1700
ANSWER_TOKENS = 32


async def measure(binary: Path, rounds: int) -> Table:
    model = peers.model("qwen3-0.6b", "Q4_K_M")
    setup = Setup(model, CHATS, 2048, 2)
    servers = [Neuron(setup), LlamaServer(binary, setup)]
    with prompts.opened(model) as tokenizer:

        async def burst(server: Server, round_: int) -> list[Stream]:
            system = prompts.prose(tokenizer, SYSTEM_TOKENS, f"system {round_}")
            chats = [
                prompts.say(prompts.prose(tokenizer, 12, f"{round_} {chat}"), system=system)
                for chat in range(CHATS)
            ]
            return await run_streams(server, chats, ANSWER_TOKENS)

        async with all_running(servers):
            results = await take_turns(servers, rounds, burst)

    table = new_table(
        f"burst: {CHATS} cold chats, one system prompt of {SYSTEM_TOKENS:,} tokens",
        "server", "median TTFT s", "last TTFT s", "all answered s", "prompt tokens", "cached",
    )  # fmt: skip
    for server, result in zip(servers, results, strict=True):
        table.add_row(
            server.name,
            f"{median(map(_ttft_s, result)):.2f}",
            f"{median(max(s.ttft_s for s in streams) for streams in result):.2f}",
            f"{median(map(_whole_s, result)):.2f}",
            f"{median(sum(s.counts.prompt_tokens for s in streams) for streams in result):,.0f}",
            f"{median(sum(s.counts.cached_tokens for s in streams) for streams in result):,.0f}",
        )
    ours, theirs = ([_ttft_s(streams) for streams in result] for result in results)
    ratio, span = ratio_cells(theirs, ours)
    table.caption = f"median TTFT: {ratio} times shorter ({span})"
    return table


def _ttft_s(streams: list[Stream]) -> float:
    return median(stream.ttft_s for stream in streams)


def _whole_s(streams: list[Stream]) -> float:
    return max(stream.end_s for stream in streams) - min(stream.sent_s for stream in streams)

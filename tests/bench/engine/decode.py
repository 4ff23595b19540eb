"""Decode throughput at several widths: completion tokens per second over a whole burst.

Short prompts are part of the burst. Long ones are computed before it, once, so that what is
measured is decoding over 512 tokens of history of one's own per stream. The peer runs with either
KV layout; the ratio is against the one with the better median, which an operator would choose.
Against the faster one of each round, the peer would have two tries to our one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from tests.bench import peers
from tests.bench.engine import prompts
from tests.bench.engine.prompts import Conversation, Tokenizer
from tests.bench.engine.rounds import all_running, new_table, ratio_cells, take_turns
from tests.bench.engine.servers import Layout, LlamaServer, Neuron, Server, ServerFailed, Setup
from tests.bench.engine.streams import GREEDY, Stream, run_streams

WIDTHS = (1, 4, 8, 16)
PARALLEL = 16
SHORT = 20
"""Tokens of what is said in a short prompt; the template adds eight."""
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 1}
LAYOUTS: tuple[Layout, ...] = ("partitioned", "unified")


@dataclass(frozen=True)
class Case:
    """One model and how it is run. `context` is tokens per sequence. `history`: tokens of prompt
    that each stream has for itself, computed beforehand; 0 = a short prompt, computed with it."""

    title: str
    preset: str
    kind: str
    threads: int
    context: int
    tokens: int
    sampling: dict[str, Any]
    history: int = 0


CASES = (
    Case("qwen3-0.6b Q4_K_M, greedy, short", "qwen3-0.6b", "Q4_K_M", 2, 512, 96, GREEDY),
    Case("qwen3-0.6b Q4_K_M, sampled, short", "qwen3-0.6b", "Q4_K_M", 2, 512, 96, SAMPLED),
    Case("qwen3-0.6b Q4_K_M, greedy, 512 each", "qwen3-0.6b", "Q4_K_M", 2, 1024, 96, GREEDY, 512),
    Case("2-layer toy F16, greedy, short", "toy", "F16", 1, 512, 256, GREEDY),
)


async def measure(
    case: Case, binary: Path, rounds: int, tokens: int | None, widths: Sequence[int]
) -> Table:
    model = peers.model(case.preset, case.kind)
    table = new_table(
        f"decode: {case.title}, {case.threads} threads",
        "streams", "neuron tok/s", *(f"llama-server {layout}" for layout in LAYOUTS),
        "ratio to the better", "lowest to highest",
    )  # fmt: skip
    setup = Setup(model, PARALLEL, case.context, case.threads)
    peers_ = [
        LlamaServer(binary, Setup(model, PARALLEL, case.context, case.threads, layout=layout))
        for layout in LAYOUTS
    ]
    servers = [Neuron(setup), *peers_]
    with prompts.opened(model) as tokenizer:
        async with all_running(servers):
            for width in widths:

                async def rate(server: Server, round_: int, width: int = width) -> float:
                    chats = _chats(case, tokenizer, round_, width)
                    if case.history:
                        await run_streams(server, chats, 1, case.sampling)
                    streams = await run_streams(server, chats, tokens or case.tokens, case.sampling)
                    _check_history(server, case, streams)
                    return _rate(streams)

                async def warm_up(server: Server, width: int = width) -> None:
                    await rate(server, -1, width)

                ours, *theirs = await take_turns(servers, rounds, rate, warm_up)
                ratio, span = ratio_cells(ours, max(theirs, key=median))
                cells = [f"{median(rates):.1f}" for rates in (ours, *theirs)]
                table.add_row(str(width), *cells, ratio, span)
    return table


def _chats(case: Case, tokenizer: Tokenizer, round_: int, width: int) -> list[Conversation]:
    """A history is the same in every round and at every width: it is computed once, and there is
    a sequence to keep each. Short prompts share nothing but what the template puts before them:
    neither server gains by what it finds of earlier rounds, which is another benchmark's."""
    if case.history:
        seeds = [f"stream {index}" for index in range(width)]
        return [prompts.say(prompts.prose(tokenizer, case.history, seed)) for seed in seeds]
    seeds = [f"round {round_}, width {width}, stream {index}" for index in range(width)]
    return [prompts.say(prompts.prose(tokenizer, SHORT, seed)) for seed in seeds]


def _check_history(server: Server, case: Case, streams: list[Stream]) -> None:
    """A history that was computed twice would be measured as slow decoding."""
    again = sum(s.counts.prompt_tokens - s.counts.cached_tokens for s in streams)
    if case.history and again > 0.1 * case.history * len(streams):
        raise ServerFailed(
            f"{server.name} has lost {again} tokens of histories it had just computed"
        )


def _rate(streams: list[Stream]) -> float:
    took_s = max(stream.end_s for stream in streams) - min(stream.sent_s for stream in streams)
    return sum(stream.counts.tokens for stream in streams) / took_s

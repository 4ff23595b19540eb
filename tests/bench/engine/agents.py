"""Two agents' conversations alternate, and together outgrow the KV cache. How many tokens that
were computed once are computed again?

Twenty turns each. What the assistant says is scripted, so that both servers see the same prompts,
and counted as new; what is counted as known is the longest prefix a prompt shares with any before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.table import Table

from tests.bench import peers
from tests.bench.conversations import (
    ANSWER_TOKENS,
    RECALL_HEADINGS,
    Recall,
    Turn,
    next_turn,
    recall_cells,
)
from tests.bench.engine import prompts
from tests.bench.engine.prompts import Conversation, Tokenizer
from tests.bench.engine.rounds import all_running, new_table, take_turns
from tests.bench.engine.servers import Layout, LlamaServer, Neuron, Server, ServerFailed, Setup
from tests.bench.engine.streams import Client

AGENTS = 2
TURNS = 20
SYSTEM_TOKENS = 600
CELLS = 4096

# A cache of one sequence, which the two fight for; and two sequences that share as many cells.
SETUPS: tuple[tuple[str, int, Layout | None], ...] = (
    ("one sequence", 1, None),
    ("two sequences, unified", 2, "unified"),
)


@dataclass(frozen=True)
class Run(Recall):
    """`waited_s`: the times to first tokens, summed."""

    waited_s: float


async def measure(binary: Path, rounds: int, turns: int = TURNS) -> Table:
    model = peers.model("qwen3-0.6b", "Q4_K_M")
    table = new_table(
        f"agents: {AGENTS} conversations of {turns} turns, alternating, {CELLS:,} KV cells",
        "server", "cache", *RECALL_HEADINGS, "waited s",
    )  # fmt: skip
    with prompts.opened(model) as tokenizer:

        async def run(server: Server, round_: int) -> Run:
            return await _play(server, script(tokenizer, turns, round_))

        for title, parallel, layout in SETUPS:
            setup = Setup(model, parallel, CELLS, 2, CELLS if layout else 0, layout)
            servers = [Neuron(setup), LlamaServer(binary, setup)]
            async with all_running(servers):
                results = await take_turns(servers, rounds, run)
            for server, result in zip(servers, results, strict=True):
                table.add_row(
                    server.name,
                    title,
                    *recall_cells(result),
                    f"{median(run.waited_s for run in result):.1f}",
                )
    return table


async def _play(server: Server, script: Iterable[Turn]) -> Run:
    prompt = known = recomputed = 0
    waited_s = 0.0
    async with Client.of(server) as client:
        for turn in script:
            answer = await client.ask(turn.conversation, ANSWER_TOKENS)
            if answer.counts.prompt_tokens != turn.prompt_tokens:
                raise ServerFailed(
                    f"{server.name} took a prompt of {turn.prompt_tokens} tokens for one of "
                    f"{answer.counts.prompt_tokens}: it was not rendered as the script thinks"
                )
            prompt += turn.prompt_tokens
            known += turn.known_tokens
            recomputed += turn.recomputed(answer.counts.cached_tokens)
            waited_s += answer.ttft_s
    return Run(prompt, known, recomputed, waited_s)


def script(tokenizer: Tokenizer, turns: int, round_: int) -> Iterator[Turn]:
    """The requests of all agents in the order they are sent."""
    system = prompts.prose(tokenizer, SYSTEM_TOKENS, f"tools {round_}")
    chats: list[Conversation] = [[{"role": "system", "content": system}] for _ in range(AGENTS)]
    seen: list[list[int]] = []
    for turn in range(turns):
        for agent, chat in enumerate(chats):
            yield next_turn(tokenizer, chat, seen, f"{round_} {agent} {turn}")

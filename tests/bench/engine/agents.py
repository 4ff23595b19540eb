"""Two agents' conversations alternate, and together outgrow the KV cache. How many tokens that
were computed once are computed again?

Twenty turns each. What the assistant says is scripted, so that both servers see the same prompts,
and counted as new; what is counted as known is the longest prefix a prompt shares with any before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median

from rich.table import Table

from tests.bench import peers
from tests.bench.engine import prompts
from tests.bench.engine.prompts import Conversation, Tokenizer
from tests.bench.engine.rounds import all_running, new_table, take_turns
from tests.bench.engine.servers import Layout, LlamaServer, Neuron, Server, ServerFailed, Setup
from tests.bench.engine.streams import Client

AGENTS = 2
TURNS = 20
SYSTEM_TOKENS = 600
TURN_TOKENS = (80, 50)  # what a tool said, what the assistant said
ANSWER_TOKENS = 16
CELLS = 4096

# A cache of one sequence, which the two fight for; and two sequences that share as many cells.
SETUPS: tuple[tuple[str, int, Layout | None], ...] = (
    ("one sequence", 1, None),
    ("two sequences, unified", 2, "unified"),
)


@dataclass(frozen=True)
class Turn:
    conversation: Conversation
    prompt_tokens: int
    known_tokens: int


@dataclass(frozen=True)
class Run:
    """`waited_s`: the times to first tokens, summed."""

    prompt_tokens: int
    known_tokens: int
    recomputed_tokens: int
    waited_s: float

    @property
    def recomputed_percent(self) -> float:
        return 100 * self.recomputed_tokens / self.known_tokens


async def measure(binary: Path, rounds: int, turns: int = TURNS) -> Table:
    model = peers.model("qwen3-0.6b", "Q4_K_M")
    table = new_table(
        f"agents: {AGENTS} conversations of {turns} turns, alternating, {CELLS:,} KV cells",
        "server", "cache", "prompt tokens", "known", "recomputed", "%", "waited s",
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
                    f"{median(run.prompt_tokens for run in result):,.0f}",
                    f"{median(run.known_tokens for run in result):,.0f}",
                    f"{median(run.recomputed_tokens for run in result):,.0f}",
                    f"{median(run.recomputed_percent for run in result):.1f}",
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
            recomputed += max(0, turn.known_tokens - answer.counts.cached_tokens)
            waited_s += answer.ttft_s
    return Run(prompt, known, recomputed, waited_s)


def script(tokenizer: Tokenizer, turns: int, round_: int) -> Iterator[Turn]:
    """The requests of all agents in the order they are sent."""
    system = prompts.prose(tokenizer, SYSTEM_TOKENS, f"tools {round_}")
    chats: list[Conversation] = [[{"role": "system", "content": system}] for _ in range(AGENTS)]
    seen: list[list[int]] = []
    for turn in range(turns):
        for agent, chat in enumerate(chats):
            seed = f"{round_} {agent} {turn}"
            heard, said = (
                prompts.prose(tokenizer, tokens, f"{seed} {tokens}") for tokens in TURN_TOKENS
            )
            chat.append({"role": "user", "content": heard})
            ids = tokenizer.ids(prompts.chatml(chat))
            known = max((_shared(ids, other) for other in seen), default=0)
            yield Turn(list(chat), len(ids), known)
            seen.append(ids)
            chat.append({"role": "assistant", "content": said})


def _shared(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

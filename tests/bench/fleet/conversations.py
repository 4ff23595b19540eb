"""Twelve conversations of several turns over several nodes, all at once. Of the tokens that some
node has computed for a conversation before, how many are computed again? And how long does it take
until an answer begins?

What the assistant says is scripted, so that everybody sees the same prompts, and counted as new;
what is counted as known is the longest prefix that a prompt shares with an earlier one of its
conversation.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.bench.conversations import ANSWER_TOKENS, Recall, Turn, next_turn
from tests.bench.engine import prompts
from tests.bench.engine.prompts import Conversation, Tokenizer

__all__ = ["Run", "play", "script"]

CONVERSATIONS = 12
TURNS = 6
SYSTEM_TOKENS = 300
PAUSE_S = 0.5  # at most, before a client's next turn


@dataclass(frozen=True)
class Run(Recall):
    """`first_s`: of each request, seconds to the first text; of all but the conversations' first
    ones in `later_s`."""

    first_s: list[float]
    later_s: list[float]
    took_s: float


def script(tokenizer: Tokenizer, seed: str) -> list[list[Turn]]:
    """The turns of each conversation."""
    return [_conversation(tokenizer, f"{seed} {number}") for number in range(CONVERSATIONS)]


def _conversation(tokenizer: Tokenizer, seed: str) -> list[Turn]:
    system = prompts.prose(tokenizer, SYSTEM_TOKENS, seed)
    chat: Conversation = [{"role": "system", "content": system}]
    seen: list[list[int]] = []
    return [next_turn(tokenizer, chat, seen, f"{seed} {turn}") for turn in range(TURNS)]


async def play(url: str, model: str, conversations: list[list[Turn]]) -> Run:
    """Each conversation by a client of its own, who asks again a moment after the answer."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    counts: list[tuple[Turn, int]] = []
    first_s: list[float] = []
    later_s: list[float] = []

    async def client(session: aiohttp.ClientSession, number: int, turns: list[Turn]) -> None:
        pauses = random.Random(number)
        for index, turn in enumerate(turns):
            await asyncio.sleep(pauses.uniform(0, PAUSE_S))
            waited_s, prompt, cached = await _ask(session, url, model, turn.conversation)
            if prompt != turn.prompt_tokens:
                raise RuntimeError(
                    f"a prompt of {turn.prompt_tokens} tokens was taken for {prompt}"
                )
            counts.append((turn, cached))
            first_s.append(waited_s)
            if index:
                later_s.append(waited_s)

    began = time.perf_counter()
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as clients,
    ):
        for number, turns in enumerate(conversations):
            clients.create_task(client(session, number, turns))
    return Run(
        sum(turn.prompt_tokens for turn, _ in counts),
        sum(turn.known_tokens for turn, _ in counts),
        sum(turn.recomputed(cached) for turn, cached in counts),
        first_s,
        later_s,
        time.perf_counter() - began,
    )


async def _ask(
    session: aiohttp.ClientSession, url: str, model: str, conversation: Conversation
) -> tuple[float, int, int]:
    """Seconds to the first text, tokens of the prompt, and those of them that were cached."""
    body = {
        "model": model,
        "messages": conversation,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        # llama-server would say otherwise for the client, and add to the prompt.
        "chat_template_kwargs": {"enable_thinking": True},
    }
    began = time.perf_counter()
    first_s: float | None = None
    found: tuple[int, int] | None = None
    async with session.post(url + "/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{url}: {answer.status} {await answer.text()}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if first_s is None and _has_text(event):
                first_s = time.perf_counter() - began
            found = _counts(event) or found
    if found is None:
        raise RuntimeError(f"{url}: a stream without its counts")
    return first_s or time.perf_counter() - began, *found


def _has_text(event: dict[str, Any]) -> bool:
    deltas = [choice["delta"] for choice in event.get("choices") or ()]
    return any(d.get("content") or d.get("reasoning_content") for d in deltas)


def _counts(event: dict[str, Any]) -> tuple[int, int] | None:
    """llama-server tells in `timings` what it took from its cache, a neuron in `usage`."""
    if "timings" in event:
        cached, computed = event["timings"]["cache_n"], event["timings"]["prompt_n"]
        return cached + computed, cached
    if usage := event.get("usage"):
        details = usage.get("prompt_tokens_details") or {}
        return usage["prompt_tokens"], details.get("cached_tokens", 0)
    return None

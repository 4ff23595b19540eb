"""Mixed requests, planned from a seed, and how each of them ended as its client saw it.

Every request ends in one of five ways, and `cut` is the one that must never be: a stream that stops
without saying that it is over, or that it has failed.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from tests.fleet.real.models import MODELS
from tests.fleet.real.rig import chat_body

__all__ = ["CHAT", "Job", "Seen", "Traffic", "plan", "summary"]

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"

Ending = Literal["complete", "refused", "failed", "left", "cut"]


@dataclass(frozen=True)
class Job:
    """`leaves_after_s`: its client goes then, wherever its request may be."""

    id: str
    path: str
    body: dict[str, Any]
    leaves_after_s: float | None = None
    is_bad: bool = False


@dataclass(frozen=True)
class Seen:
    """`failed`: by an error event. `code`: of the error, in its dialect. Monotonic seconds."""

    ending: Ending
    began: float
    ended: float
    code: str = ""
    detail: str = ""


@dataclass
class Traffic:
    """What was asked, and what became of it."""

    jobs: list[Job]
    seen: dict[str, Seen] = field(default_factory=dict)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def play(self, client: aiohttp.ClientSession, url: str, width: int) -> None:
        """At most `width` at a time, to the end of all of them."""
        todo = iter(self.jobs)

        async def one_client() -> None:
            for job in todo:  # shared by all clients: each takes the next one
                seen = await _ask(client, url, job)
                async with self.news:
                    self.seen[job.id] = seen
                    self.news.notify_all()

        async with asyncio.TaskGroup() as clients:
            for _ in range(width):
                clients.create_task(one_client())

    async def until_seen(self, count: int) -> None:
        async with self.news:
            await self.news.wait_for(lambda: len(self.seen) >= min(count, len(self.jobs)))


def plan(count: int, seed: int) -> list[Job]:
    rng = random.Random(seed)
    makers = rng.choices(list(_MIX), list(_MIX.values()), k=count)
    return [maker(rng, f"{seed}-{index}") for index, maker in enumerate(makers)]


def _model(rng: random.Random) -> str:
    return rng.choices(MODELS, weights=range(len(MODELS), 0, -1))[0]


def _stream(rng: random.Random, id_: str) -> Job:
    return Job(id_, CHAT, chat_body(_model(rng), rng.randint(5, 60), stream=True, text=_text(rng)))


def _long(rng: random.Random, id_: str) -> Job:
    return Job(id_, CHAT, chat_body(_model(rng), rng.randint(150, 300), stream=True))


def _whole(rng: random.Random, id_: str) -> Job:
    return Job(id_, CHAT, chat_body(_model(rng), rng.randint(5, 60), text=_text(rng)))


def _message(rng: random.Random, id_: str) -> Job:
    body = {
        "model": _model(rng),
        "max_tokens": rng.randint(5, 60),
        "messages": [{"role": "user", "content": _text(rng)}],
        "stream": rng.random() < 0.7,
    }
    return Job(id_, MESSAGES, body)


def _hasty(rng: random.Random, id_: str) -> Job:
    body = chat_body(_model(rng), 200, stream=rng.random() < 0.5)
    return Job(id_, CHAT, body, leaves_after_s=rng.uniform(0.01, 1.0))


def _bad(rng: random.Random, id_: str) -> Job:
    body = chat_body(_model(rng), 5)
    body |= rng.choice([{"model": "no-such-model"}, {"max_tokens": 0}, {"top_p": 7}])
    return Job(id_, CHAT, body, is_bad=True)


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(("one", "two", "three", "four"), k=rng.randint(1, 40)))


_MIX = {_stream: 40, _long: 10, _whole: 20, _message: 16, _hasty: 8, _bad: 6}


async def _ask(client: aiohttp.ClientSession, url: str, job: Job) -> Seen:
    began = time.monotonic()
    headers = {"x-request-id": job.id}

    def seen(ending: Ending, code: str = "", detail: str = "") -> Seen:
        return Seen(ending, began, time.monotonic(), code, detail)

    try:
        async with (
            asyncio.timeout(job.leaves_after_s),
            client.post(url + job.path, json=job.body, headers=headers) as response,
        ):
            if response.content_type == "text/event-stream":
                ending, error = await _read(response)
                return seen(ending, _code(error), str(error))
            answer = await response.json()
            if response.status == 200:
                assert "choices" in answer or answer["type"] == "message", answer
                return seen("complete")
            return seen("refused", _code(answer["error"]), str(answer["error"]))
    except TimeoutError:
        if job.leaves_after_s is None:
            return seen("cut", detail="no end within the client's patience")
        return seen("left")
    except (aiohttp.ClientError, OSError) as error:
        return seen("cut", detail=repr(error))


async def _read(response: aiohttp.ClientResponse) -> tuple[Ending, dict[str, Any]]:
    """A stream to its end, of either dialect."""
    ending: Ending = "cut"
    error: dict[str, Any] = {}
    async for line in response.content:
        payload = line.removeprefix(b"data: ").strip()
        if not line.startswith(b"data: "):
            continue
        assert ending == "cut", f"{payload!r} came after the end"
        if payload == b"[DONE]":
            ending = "complete"
            continue
        event = json.loads(payload)
        if "error" in event:
            ending, error = "failed", event["error"]
        elif event.get("type") == "message_stop":
            ending = "complete"
    return ending, error


def _code(error: dict[str, Any]) -> str:
    return error.get("code") or error.get("type") or ""


def summary(seen: Sequence[Seen]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in seen:
        key = f"{one.ending} {one.code}".strip()
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))

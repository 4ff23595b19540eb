"""Mixed traffic, planned from a seed and played against a URL, each request as its client saw it.

The plan is a value: what is asked and when its client leaves. Playing it says of every request how
it ended, once; an ending that no plan foresees is an AssertionError.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from tests.e2e.client import CHAT, TINY, user

__all__ = ["CONTEXT", "Job", "Seen", "Traffic", "endless", "holding", "plan", "play"]

CONTEXT = 2048  # tokens per sequence; what "overflowing" is measured by

Ending = Literal["ok", "refused", "left"]

_QUESTIONS = [
    *(f"What is the capital of {land}?" for land in ("France", "Norway", "Japan", "Egypt")),
    *(f"What is {a} + {b}?" for a in range(4) for b in range(5, 9)),
    *("Who are you?", "ping", "Say hello in Japanese.", "Send me an emoji.", "Tell me a joke."),
]
# Some 300 tokens each, so that a cached one is most of its request's work.
_SYSTEMS = [
    f"You are clerk number {clerk}. " + "Answer in one short line and nothing else. " * 24
    for clerk in range(3)
]
_BAD: tuple[bytes | dict[str, Any], ...] = (
    b"{",
    b"[]",
    {"model": TINY},
    {"model": TINY, "messages": []},
    {"model": TINY, "messages": user("ping"), "temperature": -1},
    {"model": TINY, "messages": user("ping"), "max_tokens": 0},
    {"model": TINY, "messages": [{"role": "nobody", "content": "ping"}]},
    {"model": TINY, "messages": user("ping"), "no_such_parameter": 1},
    {"model": "no/such-model", "messages": user("ping")},
)


@dataclass(frozen=True)
class Job:
    """`leaves_after`: pieces of text after which its client goes. `leaves_after_s`: it goes then,
    wherever its request may be by that time, unless it has its answer."""

    id: str
    kind: str
    body: bytes
    leaves_after: int | None = None
    leaves_after_s: float | None = None

    @property
    def endings(self) -> tuple[Ending, ...]:
        """Those that are right for it."""
        if self.leaves_after is not None or self.kind == "endless":
            return ("left",)
        if self.leaves_after_s is not None:
            return ("left", "ok")
        return ("refused",) if self.kind in ("too long", "bad") else ("ok",)


@dataclass(frozen=True)
class Seen:
    ending: Ending
    status: int | None = None
    finish_reason: str | None = None


@dataclass
class Traffic:
    """Everything that was sent, and how its clients saw it end."""

    jobs: dict[str, Job] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)


def plan(count: int, seed: int, name: str) -> list[Job]:
    """`count` jobs of every kind, in random order, the same for the same arguments."""
    rng = random.Random(f"{seed} {name}")
    makers = rng.choices(list(_MIX), list(_MIX.values()), k=count - 1)
    makers.insert(rng.randrange(count), _full)  # too long to leave their number to chance
    return [maker(rng, f"{name}-{index}") for index, maker in enumerate(makers)]


def endless(id_: str) -> Job:
    """Goes on until its context is full."""
    return Job(id_, "endless", _body("Hello!", stream=True, ignore_eos=True))


async def play(url: str, jobs: Sequence[Job], width: int, traffic: Traffic) -> None:
    """At most `width` at a time; all of them have ended when it returns."""
    todo = iter(jobs)

    async def client(session: aiohttp.ClientSession) -> None:
        for job in todo:  # shared by all clients: each takes the next one
            traffic.jobs[job.id] = job
            traffic.seen[job.id] = await _one(session, url, job)

    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
        asyncio.TaskGroup() as clients,
    ):
        for _ in range(width):
            clients.create_task(client(session))


@asynccontextmanager
async def holding(url: str, jobs: Sequence[Job], traffic: Traffic) -> AsyncIterator[None]:
    """All of these at once, until the block is left; then all their clients go. None of them may
    have ended by then."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        asking = [asyncio.create_task(_one(session, url, job)) for job in jobs]
        try:
            yield
            assert not any(task.done() for task in asking), f"ended too early: {asking}"
        finally:
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
    for job in jobs:
        traffic.jobs[job.id] = job
        traffic.seen[job.id] = Seen("left")


async def _one(session: aiohttp.ClientSession, url: str, job: Job) -> Seen:
    headers = {"content-type": "application/json", "x-request-id": job.id}
    try:
        async with asyncio.timeout(job.leaves_after_s):
            async with session.post(url + CHAT, data=job.body, headers=headers) as response:
                if response.status != 200:
                    error = (await response.json())["error"]
                    assert error["message"], job
                    return Seen("refused", response.status)
                if response.content_type != "text/event-stream":
                    (choice,) = (await response.json())["choices"]
                    return Seen("ok", 200, choice["finish_reason"])
                return await _stream(response, job)
    except TimeoutError:
        assert job.leaves_after_s is not None, f"{job.id} got no answer"
        return Seen("left")


async def _stream(response: aiohttp.ClientResponse, job: Job) -> Seen:
    pieces, reasons, is_done = 0, [], False
    async for line in response.content:
        payload = line.removeprefix(b"data: ").strip()
        if payload == b"[DONE]":
            is_done = True
        elif line.startswith(b"data: "):
            event = json.loads(payload)
            assert "error" not in event, f"{job.id}: {event}"
            for choice in event["choices"]:
                delta = choice["delta"]
                pieces += bool(delta.get("content") or delta.get("reasoning_content"))
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
            if job.leaves_after is not None and pieces >= job.leaves_after:
                response.close()
                return Seen("left", 200)
    assert is_done, f"{job.id} was cut off"
    assert len(reasons) == 1, f"{job.id} finished for {reasons}"
    return Seen("ok", 200, reasons[0])


def _body(question: str, *, system: str | None = None, **parameters: Any) -> bytes:
    opening = [{"role": "system", "content": system}] if system else []
    body = {"model": TINY, "messages": opening + user(question), "temperature": 0}
    return json.dumps(body | parameters).encode()


def _short(rng: random.Random, id_: str) -> Job:
    thinks = {"enable_thinking": rng.random() < 0.3}
    question = rng.choice(_QUESTIONS)
    body = _body(question, stream=True, max_tokens=60, chat_template_kwargs=thinks)
    return Job(id_, "short", body)


def _whole(rng: random.Random, id_: str) -> Job:
    question, seed = rng.choice(_QUESTIONS), rng.randrange(2**31)
    return Job(id_, "whole", _body(question, max_tokens=60, temperature=0.8, seed=seed))


def _shared(rng: random.Random, id_: str) -> Job:
    question, system = rng.choice(_QUESTIONS), rng.choice(_SYSTEMS)
    return Job(id_, "shared", _body(question, system=system, stream=True, max_tokens=30))


def _long(rng: random.Random, id_: str) -> Job:
    question, tokens = rng.choice(_QUESTIONS), rng.randint(80, 160)
    return Job(id_, "long", _body(question, stream=True, ignore_eos=True, max_tokens=tokens))


def _cold(rng: random.Random, id_: str) -> Job:
    """A prompt of its own and of several batches, so that chunks of others go with its chunks."""
    question = "".join(rng.choices("0123456789", k=rng.randint(300, CONTEXT - 300)))
    return Job(id_, "cold", _body(question, stream=True, max_tokens=4))


def _full(rng: random.Random, id_: str) -> Job:
    """Goes on until its context is full."""
    return Job(id_, "full", _body(rng.choice(_QUESTIONS), stream=True, ignore_eos=True))


def _abandoned(rng: random.Random, id_: str) -> Job:
    body = _body(rng.choice(_QUESTIONS), stream=True, ignore_eos=True)
    return Job(id_, "abandoned", body, leaves_after=rng.randint(1, 20))


def _hasty(rng: random.Random, id_: str) -> Job:
    body = _body(rng.choice(_QUESTIONS), stream=rng.random() < 0.5, max_tokens=60)
    return Job(id_, "hasty", body, leaves_after_s=rng.uniform(0.0005, 0.02))


def _too_long(rng: random.Random, id_: str) -> Job:
    return Job(id_, "too long", _body(f"{rng.random()} " * CONTEXT, stream=rng.random() < 0.5))


def _bad(rng: random.Random, id_: str) -> Job:
    bad = rng.choice(_BAD)
    return Job(id_, "bad", bad if isinstance(bad, bytes) else json.dumps(bad).encode())


_MIX = {
    _short: 30,
    _whole: 18,
    _shared: 18,
    _long: 8,
    _cold: 8,
    _abandoned: 10,
    _hasty: 7,
    _too_long: 4,
    _bad: 5,
}

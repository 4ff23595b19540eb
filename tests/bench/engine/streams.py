"""Answers as their clients see them: when each piece came, and what the server counted."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench.engine.prompts import Conversation
from tests.bench.engine.servers import Counts, Server, ServerFailed

__all__ = ["GREEDY", "Client", "Stream", "run_streams"]

GREEDY = {"temperature": 0}

_MARK = b"data: {"
_KEPT_CHUNKS = 64  # the peer's last event repeats the prompt, and may come in several


class Stream:
    """One answer, being read or over. Times are those of `time.perf_counter`.

    `arrivals`: when each chunk with events came, from the first text on. A comment that only keeps
    the connection alive is none.
    """

    def __init__(self, sent_s: float) -> None:
        self.sent_s = sent_s
        self.end_s = 0.0
        self.arrivals: list[float] = []
        self.counts = Counts(0, 0, 0)
        self._news = asyncio.Event()

    @property
    def ttft_s(self) -> float:
        return self.arrivals[0] - self.sent_s

    def arrive(self, now_s: float) -> None:
        self.arrivals.append(now_s)
        self._news.set()

    async def arrived(self, count: int) -> None:
        """Until so many chunks have come."""
        while len(self.arrivals) < count:
            self._news.clear()
            await self._news.wait()

    def longest_gap_s(self, since_s: float, until_s: float) -> float:
        """Between two arrivals that are not both before or both after this span; an open end
        counts up to the span's own."""
        before = [at for at in self.arrivals if at <= since_s][-1:]
        within = [at for at in self.arrivals if since_s < at < until_s]
        after = [at for at in self.arrivals if at >= until_s][:1] or [until_s]
        points = [*before, *within, *after]
        return max((b - a for a, b in pairwise(points)), default=0.0)


class Client:
    """Requests to one server over one session."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._session = session

    @classmethod
    @asynccontextmanager
    async def of(cls, server: Server) -> AsyncIterator[Client]:
        # A connection each: one that is kept may be closed by its server while a request is on
        # its way, which has nothing to do with what is measured.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            yield cls(server, session)

    async def ask(
        self,
        conversation: Conversation,
        tokens: int,
        sampling: dict[str, Any] = GREEDY,
        *,
        model: Path | None = None,
    ) -> Stream:
        """An answer, read to its end."""
        stream = Stream(time.perf_counter())
        await self.read(stream, conversation, tokens, sampling, model=model)
        return stream

    async def read(
        self,
        stream: Stream,
        conversation: Conversation,
        tokens: int,
        sampling: dict[str, Any] = GREEDY,
        *,
        model: Path | None = None,
    ) -> None:
        """Fill `stream` as its events come, for whoever watches it meanwhile."""
        server = self._server
        path, body = server.request(conversation, tokens, sampling, model)
        async with self._session.post(server.url + path, json=body) as answer:
            if answer.status != 200:
                raise ServerFailed(f"{server.name}: {answer.status} {await answer.text()}")
            chunks: deque[bytes] = deque(maxlen=_KEPT_CHUNKS)
            async for chunk in answer.content.iter_any():
                now_s = time.perf_counter()
                chunks.append(chunk)
                # Only until the first text are events looked into: reading them all would take
                # from the servers the time that is being measured.
                if stream.arrivals:
                    if _MARK in chunk:
                        stream.arrive(now_s)
                elif any(map(server.has_text, _events(b"".join(chunks)))):
                    stream.arrive(now_s)
        stream.end_s = time.perf_counter()
        events = _events(b"".join(chunks))
        known = [counts for event in events if (counts := server.counts(event))]
        if not known:
            raise ServerFailed(f"{server.name}: a stream without its counts: {list(chunks)[-3:]!r}")
        stream.counts = known[-1]
        if not stream.arrivals:  # all it said was empty or half a character
            stream.arrive(stream.end_s)


async def run_streams(
    server: Server,
    conversations: Iterable[Conversation],
    tokens: int,
    sampling: dict[str, Any] = GREEDY,
) -> list[Stream]:
    """Ask all at once and read all answers to their end."""
    async with Client.of(server) as client:
        asked = [client.ask(conversation, tokens, sampling) for conversation in conversations]
        return await asyncio.gather(*asked)


def _events(data: bytes) -> list[dict[str, Any]]:
    """Those of the data's whole lines that are events; half a line at either end is none."""
    events: list[dict[str, Any]] = []
    for line in data.split(b"\n"):
        if line.startswith(_MARK):
            try:
                events.append(json.loads(line[6:]))
            except ValueError:
                continue
    return events

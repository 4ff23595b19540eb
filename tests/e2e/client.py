"""A plain HTTP client for end-to-end tests: whole answers, streams as their clients see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

__all__ = ["CHAT", "Answer", "Chat", "ask", "eventually", "fetch", "open_stream", "user"]

CHAT = "/v1/chat/completions"
TINY = "cortex/tiny"
GIVE_UP_S = 30.0


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@dataclass
class Answer:
    """A status, the headers, and the body as JSON."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def message(self) -> dict[str, Any]:
        return self.body["choices"][0]["message"]

    @property
    def text(self) -> str:
        return self.message["content"] or ""


async def fetch(method: str, url: str, body: Any = None, **options: Any) -> Answer:
    """One request; `body` is sent as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=data, **options) as answer,
    ):
        raw = await answer.read()
        headers = {name.lower(): value for name, value in answer.headers.items()}
        try:
            return Answer(answer.status, headers, json.loads(raw))
        except ValueError:
            return Answer(answer.status, headers, raw.decode("utf-8", "replace"))


async def ask(url: str, text: str | list[dict[str, Any]], **parameters: Any) -> Answer:
    """One greedy whole answer from cortex/tiny, unless `parameters` say otherwise."""
    messages = user(text) if isinstance(text, str) else text
    body = {"model": TINY, "messages": messages, "temperature": 0} | parameters
    return await fetch("POST", url + CHAT, body)


@dataclass
class Chat:
    """A stream being read: what has come so far."""

    response: aiohttp.ClientResponse
    chunks: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False
    _lines: AsyncIterator[bytes] | None = None

    async def read(self, until: Callable[[Chat], bool] = lambda _: False) -> Chat:
        """Read to the end, or until `until` is true of what has come."""
        while not until(self):
            line = await self.response.content.readline()
            if not line:
                break
            payload = line.removeprefix(b"data: ").strip()
            if payload == b"[DONE]":
                self.is_done = True
            elif line.startswith(b"data: "):
                self.chunks.append(json.loads(payload))
        return self

    @property
    def deltas(self) -> list[dict[str, Any]]:
        return [choice["delta"] for chunk in self.chunks for choice in chunk.get("choices") or ()]

    @property
    def text(self) -> str:
        return "".join(delta.get("content") or "" for delta in self.deltas)

    @property
    def reasoning(self) -> str:
        return "".join(delta.get("reasoning_content") or "" for delta in self.deltas)

    @property
    def error(self) -> dict[str, Any] | None:
        return next((chunk["error"] for chunk in self.chunks if "error" in chunk), None)

    @property
    def finish_reason(self) -> str | None:
        reasons = [
            choice["finish_reason"]
            for chunk in self.chunks
            for choice in chunk.get("choices") or ()
            if choice["finish_reason"]
        ]
        return reasons[-1] if reasons else None

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls put together from their deltas, as [{id, name, arguments}]."""
        calls: dict[int, dict[str, Any]] = {}
        for delta in self.deltas:
            for part in delta.get("tool_calls") or ():
                call = calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
                call["id"] += part.get("id") or ""
                call["name"] += (part.get("function") or {}).get("name") or ""
                call["arguments"] += (part.get("function") or {}).get("arguments") or ""
        return [calls[index] for index in sorted(calls)]


@asynccontextmanager
async def open_stream(
    url: str, text: str | list[dict[str, Any]], **parameters: Any
) -> AsyncIterator[Chat]:
    """A greedy stream from cortex/tiny. Leaving the block closes the connection."""
    messages = user(text) if isinstance(text, str) else text
    body = {"model": TINY, "messages": messages, "temperature": 0, "stream": True} | parameters
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(url + CHAT, json=body) as response,
    ):
        yield Chat(response)


async def eventually(
    is_true: Callable[[], Awaitable[bool]], what: str, *, within_s: float = GIVE_UP_S
) -> None:
    """Until `is_true`; for facts about another process that it announces to nobody."""
    try:
        async with asyncio.timeout(within_s):
            while not await is_true():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never came true within {within_s} s: {what}") from None

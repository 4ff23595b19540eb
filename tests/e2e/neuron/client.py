"""A neuron's HTTP API as tests use it: one aiohttp session, and waiting by events only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from cortex_core.fleet.discovery import NodeState
from cortex_core.wire import sse

__all__ = [
    "QUESTION",
    "TINY",
    "Answer",
    "Chunks",
    "Client",
    "ask",
    "connect",
    "endless",
    "worker_pid",
]

TINY = "cortex/tiny"
QUESTION = "What is the capital of France?"


class Answer:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error envelope, whole."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "code", "param"}, error
        assert error["message"]
        return error

    @property
    def text(self) -> str:
        return self.json["choices"][0]["message"]["content"]


class Chunks:
    """A streamed chat, event by event."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.text = ""
        self.error: dict[str, Any] | None = None
        self.is_done = False
        self._parser = sse.Parser()
        self._events: list[sse.Event] = []

    async def until_text(self, length: int = 1) -> None:
        """Until at least so much text has come."""
        while len(self.text) < length:
            assert await self._next(), f"the stream ended after {self.text!r} ({self.error})"

    async def to_the_end(self) -> str:
        while await self._next():
            pass
        return self.text

    async def _next(self) -> bool:
        while not self._events:
            chunk = await self.response.content.readany()
            if not chunk:
                return False
            self._events = self._parser.feed(chunk)
        event = self._events.pop(0)
        if event.data == b"[DONE]":
            self.is_done = True
            return True
        data = json.loads(event.data)
        if "error" in data:
            self.error = data["error"]
        for choice in data.get("choices", ()):
            delta = choice["delta"]
            self.text += (delta.get("reasoning_content") or "") + (delta.get("content") or "")
        return True


def ask(question: str, model: str = TINY, **more: Any) -> dict[str, Any]:
    """A greedy chat request."""
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "temperature": 0, **more}


def endless(model: str = TINY, **more: Any) -> dict[str, Any]:
    """A stream that goes on until the context is full, or `max_tokens` are out."""
    return ask(QUESTION, model, ignore_eos=True, stream=True, **more)


class Client:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.request("GET", path, **more)

    async def post(self, path: str, value: Any = None, **more: Any) -> Answer:
        return await self.request("POST", path, json=value, **more)

    async def request(self, method: str, path: str, **more: Any) -> Answer:
        async with self.session.request(method, self.url + path, **more) as response:
            return Answer(response.status, response.headers, await response.read())

    async def chat(self, question: str, model: str = TINY, **more: Any) -> Answer:
        return await self.post("/v1/chat/completions", ask(question, model, **more))

    @asynccontextmanager
    async def stream(self, body: dict[str, Any]) -> AsyncIterator[Chunks]:
        url = self.url + "/v1/chat/completions"
        async with self.session.post(url, json=body) as response:
            assert response.status == 200, await response.text()
            yield Chunks(response)

    async def states(self) -> AsyncIterator[NodeState]:
        """Each state that /events sends, from the present one on, until the neuron ends it."""
        parser = sse.Parser()
        async with self.session.get(self.url + "/events") as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            async for chunk in response.content.iter_any():
                for event in parser.feed(chunk):
                    assert event.event == "state"
                    state = msgspec.json.decode(event.data, type=NodeState)
                    assert event.id == str(state.version)
                    yield state

    async def until(self, is_true: Callable[[NodeState], bool], limit_s: float = 30) -> NodeState:
        """The first state for which it holds."""
        last = None
        try:
            async with asyncio.timeout(limit_s):
                async for last in self.states():
                    if is_true(last):
                        return last
        except TimeoutError:
            raise AssertionError(f"not within {limit_s} s; the last state: {last}") from None
        raise AssertionError(f"the events ended; the last state: {last}")

    async def until_ready(self, *models: str) -> NodeState:
        wanted = set(models or (TINY,))

        def are_ready(state: NodeState) -> bool:
            for model in state.models:
                assert model.id not in wanted or model.phase != "failed", model
            return wanted <= {m.id for m in state.models if m.phase == "ready"}

        return await self.until(are_ready)


@asynccontextmanager
async def connect(url: str, token: str | None = None) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else None
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield Client(url, session)


def worker_pid(state: NodeState, device: str = "cpu") -> int:
    pid = next(d.worker.pid for d in state.devices if d.id == device)
    assert pid is not None
    return pid

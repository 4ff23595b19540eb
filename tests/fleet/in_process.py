"""A gateway in this process in front of scripted neurons, asked message by message over ASGI.

For what cannot be seen from outside: outcomes as values, waits made short, and dialects of a test's
own. Everything but the server's socket is the gateway's own code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from cortex_core.config.gateway import GatewayConfig, GatewaySection, NeuronEntry
from cortex_core.outcome import Outcome
from cortex_gateway import vigil
from cortex_gateway.app import Gateway
from cortex_gateway.dialects import DIALECTS, Route
from cortex_gateway.proxy import Proxy
from tests.fleet.conftest import Reply
from tests.fleet.scripted_neuron import Call, ScriptedNeuron

__all__ = ["Asked", "Desk", "LateNeuron", "be_impatient", "running_desk"]

WITHIN_S = 15.0


def be_impatient(monkeypatch: pytest.MonkeyPatch, silence_s: float = 0.05) -> None:
    """Signs of life come after so much silence, and then every 20 ms."""
    monkeypatch.setattr(vigil, "SILENCE_S", silence_s)
    monkeypatch.setattr(vigil, "BEAT_S", 0.02)


class LateNeuron(ScriptedNeuron):
    """Accepts connections, and says how it is only once `told` is set."""

    def __init__(self, name: str, *models: str) -> None:
        super().__init__(name, *models)
        self.told = asyncio.Event()

    async def _be_followed(self, call: Call) -> None:
        await self.told.wait()
        await super()._be_followed(call)


class Asked:
    """One request under way. A piece of its body that is None never comes."""

    def __init__(self, scope: MutableMapping[str, Any], pieces: Sequence[bytes | None]) -> None:
        self.scope = scope
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.pieces: list[bytes] = []
        self.task: asyncio.Task[None]
        self._takes_bytes = asyncio.Event()
        self._takes_bytes.set()
        self._to_give = list(pieces)
        self._left = asyncio.Event()
        self._news = asyncio.Condition()

    async def receive(self) -> dict[str, Any]:
        piece = self._to_give.pop(0) if self._to_give else None
        if piece is not None:
            return {"type": "http.request", "body": piece, "more_body": bool(self._to_give)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await self._takes_bytes.wait()
        async with self._news:
            if message["type"] == "http.response.start":
                assert not self.status
                self.status = message["status"]
                self.headers = {n.decode(): v.decode("latin-1") for n, v in message["headers"]}
            else:
                assert self.status
                self.pieces.append(message.get("body", b""))
                self.body += self.pieces[-1]
            self._news.notify_all()

    def leave(self) -> None:
        self._left.set()

    def take_bytes(self, does_so: bool) -> None:
        if does_so:
            self._takes_bytes.set()
        else:
            self._takes_bytes.clear()

    async def until(self, mark: bytes, count: int = 1) -> None:
        """Until the client has got `mark` so many times."""
        async with asyncio.timeout(WITHIN_S), self._news:
            await self._news.wait_for(lambda: self.body.count(mark) >= count)

    async def reply(self) -> Reply:
        """The answer, when it is complete."""
        await asyncio.wait_for(self.task, WITHIN_S)
        return Reply(self.status, self.headers, self.body)


class Desk:
    """`outcomes` of what was asked here, in the order in which it ended."""

    def __init__(self, gateway: Gateway, routes: Mapping[str, Route]) -> None:
        self.gateway = gateway
        self.outcomes: list[Outcome] = []
        self.proxy = Proxy(
            gateway.config.gateway,
            gateway.fleet,
            gateway.upstream,
            gateway.admission,
            self.outcomes.append,
            routes,
        )
        self._asked: list[Asked] = []

    def ask(
        self,
        path: str,
        body: Any,
        headers: Mapping[str, str] | None = None,
        query: bytes = b"",
        pieces: Sequence[bytes | None] | None = None,
    ) -> Asked:
        """POST `body`, as JSON unless it is bytes; `pieces` instead of it come one by one."""
        body = body if isinstance(body, bytes) else msgspec.json.encode(body)
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": query,
            "headers": [(n.encode(), v.encode()) for n, v in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "state": {},
        }
        asked = Asked(scope, [body] if pieces is None else pieces)
        asked.task = asyncio.create_task(self.proxy(scope, asked.receive, asked.send))
        self._asked.append(asked)
        return asked

    def chat(self, model: str = "m", headers: Mapping[str, str] | None = None, **fields: Any):
        """An Asked chat."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | fields
        return self.ask("/v1/chat/completions", body, headers)

    async def close(self) -> None:
        for asked in self._asked:
            asked.task.cancel()
        await asyncio.gather(*(asked.task for asked in self._asked), return_exceptions=True)


@asynccontextmanager
async def running_desk(
    *neurons: ScriptedNeuron, routes: Mapping[str, Route] = DIALECTS, **settings: Any
) -> AsyncIterator[Desk]:
    """`settings` go into [gateway]. The neurons are listening already."""
    config = GatewayConfig(
        GatewaySection(**settings),
        neurons=[NeuronEntry(neuron.name, neuron.endpoint) for neuron in neurons],
    )
    async with Gateway(config) as gateway:
        desk = Desk(gateway, routes)
        try:
            yield desk
        finally:
            await desk.close()

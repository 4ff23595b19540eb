"""A registry that plays a worker's recorded events through the neuron's real request streams, and
an ASGI client that sees every single write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.types import ASGIApp

from cortex_core.config.neuron import NeuronConfig
from cortex_core.errors import Fault, ModelNotFound
from cortex_core.outcome import Usage
from cortex_core.wire import ipc, sse
from neuron.routes.chat import ChatEndpoint
from neuron.streams import RequestStream, StreamTable

USAGE = Usage(prompt=12, cached=8, completion=5, reasoning=2)
HERMES_TEMPLATE = """\
{%- if tools %}{{ '<tools>' + (tools | tojson) + '</tools> answer with <tool_call>' }}{% endif %}
{%- for message in messages %}{{ '<' + message.role + '>' + (message.content or '') }}{% endfor %}
{%- if enable_thinking is defined %}{{ '|thinking=' ~ enable_thinking }}{% endif %}
{%- if opens_thinking %}{{ '<think>\n' }}{% endif %}
"""

Script = Sequence[Sequence[tuple[str, str] | str | Fault]]
"""Steps; in a step, a (channel, text), "started", a finish reason, or a fault."""

HELLO: Script = [["started"], [("content", "Hel")], [("content", "lo")], ["stop"]]


def info(template: str = HERMES_TEMPLATE, **changes: Any) -> ipc.ModelInfo:
    known = ipc.ModelInfo(
        architecture="qwen3",
        context=4096,
        context_train=4096,
        parallel=8,
        vocab_size=2048,
        parameters=1,
        file_bytes=1,
        memory_bytes=1,
        load_s=0.1,
        bos="<s>",
        eos="</s>",
        reasoning=("<think>", "</think>"),
        metadata={"tokenizer.chat_template": template},
    )
    return msgspec.structs.replace(known, **changes)


class PlayedRegistry:
    """`script` plays when a request opens, one step per turn of the event loop."""

    def __init__(self, script: Script = (), known: ipc.ModelInfo | None = None) -> None:
        self.script = script
        self.known = known or info()
        self.defaults: dict[str, Any] = {}
        self.sent: list[ipc.Command] = []
        self.opened = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._table = StreamTable(self._send, lambda: None)
        self._player: asyncio.Task[None] | None = None

    def info(self, model: str) -> ipc.ModelInfo:
        if model != "m":
            raise ModelNotFound(f"model {model!r} is not loaded", param="model")
        return self.known

    def sampling_defaults(self, model: str) -> dict[str, Any]:
        return self.defaults

    def open(self, ask: ipc.Ask) -> RequestStream:
        stream = self._table.open(ask)
        self.opened.set()
        self._player = asyncio.create_task(self._play(stream.request))
        return stream

    def step(self, request: int, *events: tuple[str, str] | str | Fault) -> None:
        step = ipc.Step("m")
        for event in events:
            if isinstance(event, Fault):
                step.failed.append(ipc.Failed(request, event))
            elif isinstance(event, tuple):
                channel = msgspec.convert(event[0], ipc.Channel)
                step.deltas.append(ipc.Delta(request, event[1], channel))
            elif event == "started":
                step.started.append(ipc.Started(request, USAGE.prompt, USAGE.cached, "cache"))
            else:
                reason = msgspec.convert(event, ipc.FinishReason)
                step.finished.append(ipc.Finished(request, reason, USAGE))
        self._table.dispatch(step)

    @property
    def generate(self) -> ipc.Generate:
        (command,) = [command for command in self.sent if isinstance(command, ipc.Generate)]
        return command

    def _send(self, command: ipc.Command) -> None:
        self.sent.append(command)
        if isinstance(command, ipc.Cancel):
            self.cancelled.set()

    async def _play(self, request: int) -> None:
        for step in self.script:
            self.step(request, *step)
            for _ in range(3):  # the reader wakes, reads, and writes
                await asyncio.sleep(0)


class Exchanged:
    """One request to the chat endpoint; the client stays until `leave` is set."""

    def __init__(
        self,
        registry: PlayedRegistry,
        body: Any,
        headers: dict[str, str] | None = None,
        *,
        silence_s: float = 30.0,
        keep_alive_s: float = 30.0,
        config: NeuronConfig | None = None,
        endpoint: ASGIApp | None = None,
        query: str = "",
    ) -> None:
        self.leave = asyncio.Event()
        self.writes: list[bytes] = []
        self.wrote = asyncio.Condition()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self._endpoint = endpoint or ChatEndpoint(
            registry, config or NeuronConfig(), silence_s=silence_s, keep_alive_s=keep_alive_s
        )
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        self._parts = [data[: len(data) // 2], data[len(data) // 2 :]]
        given = headers or {}
        self._scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": query.encode(),
            "headers": [(key.encode(), value.encode()) for key, value in given.items()],
        }

    async def run(self) -> Exchanged:
        await self._endpoint(self._scope, self._receive, self._send)
        return self

    @property
    def text(self) -> bytes:
        return b"".join(self.writes)

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.text)

    @property
    def events(self) -> list[Any]:
        """The data of each event, decoded; the end mark as a string."""
        events = sse.Parser().feed(self.text)
        return [
            "[DONE]" if event.data == b"[DONE]" else msgspec.json.decode(event.data)
            for event in events
        ]

    @property
    def deltas(self) -> list[Any]:
        chunks = [event for event in self.events if event != "[DONE]" and event.get("choices")]
        return [chunk["choices"][0]["delta"] for chunk in chunks]

    async def until(self, fragment: bytes) -> None:
        async with self.wrote:
            await asyncio.wait_for(self.wrote.wait_for(lambda: fragment in self.text), 10)

    async def _receive(self) -> Any:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        assert not self.is_complete, f"sent after the end: {message}"
        if message["type"] == "http.response.start":
            assert not self.status, "a second head"
            self.status = message["status"]
            self.headers = {key.decode(): value.decode() for key, value in message["headers"]}
            return
        assert self.status, "a body before the head"
        self.writes.append(message["body"])
        self.is_complete = not message.get("more_body", False)
        async with self.wrote:
            self.wrote.notify_all()


def ask(content: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}]} | more

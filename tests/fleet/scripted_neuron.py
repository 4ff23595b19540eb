"""A neuron that does as it is told: stalls, breaks off, lies, refuses, disappears, comes back.

The only stand-in in these tests, and only for gateway faults that a real neuron cannot be made to
commit on cue. It speaks just enough HTTP/1.1: one request at a time per connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cortex_core.fleet.discovery import DeviceState, ModelState, NodeState, WorkerState
from cortex_gateway.proxy import PATHS
from tests.fleet.shelf import ROOM_BYTES, Shelf

__all__ = ["Call", "Script", "ScriptedNeuron", "chunks_of", "completion"]

BEAT_S = 0.5


class Call:
    """One request, and the means to answer it in any way, right or wrong."""

    def __init__(
        self,
        neuron: ScriptedNeuron,
        head: bytes,
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        line, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = line.split(" ", 2)
        pairs = (line.partition(":") for line in lines if line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        self.body = body
        self.neuron = neuron
        self._reader = reader
        self._writer = writer
        self.is_closing = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(
        self,
        body: bytes | dict[str, Any],
        status: int = 200,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": content_type, "Content-Length": str(len(body))} | (headers or {})
        await self.raw(_head(status, given) + body)

    async def start_stream(self, headers: dict[str, str] | None = None) -> None:
        given = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}
        await self.raw(_head(200, given | (headers or {})))

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def stream(self, *chunks: bytes) -> None:
        await self.start_stream()
        for chunk in chunks:
            await self.chunk(chunk)
        await self.end()

    def close(self) -> None:
        """End the connection as if there were nothing more to say."""
        self.is_closing = True
        self._writer.close()

    def reset(self) -> None:
        """End the connection as a crashed process does."""
        self.is_closing = True
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Return when the gateway has closed this connection."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65536):
                pass
        self.is_closing = True


Script = Callable[[Call], Awaitable[None]]


class ScriptedNeuron:
    """An async context manager. `script` answers what a model answers; `calls` holds it all."""

    def __init__(self, name: str, *models: str, sizes: dict[str, int] | None = None) -> None:
        """`models` are loaded, `sizes` (in bytes) could be."""
        self.name = name
        self.port = 0
        self.state = NodeState(
            name, f"{name}-boot-1", 1, False, [], [_model(model) for model in models]
        )
        self.shelf = Shelf(self, sizes or {})
        self.state = msgspec.structs.replace(self.state, devices=[self._device()])
        self.first_state = self.state
        self.is_beating = True
        self.fails_next = False  # the next order's connection breaks
        self._resets = 0
        self.token: str | None = None
        self.token_file: str | None = None  # as the gateway's configuration should name it
        self.script: Script = answer_hello
        self.calls: list[Call] = []
        self.orders: list[Call] = []
        self.watchers: list[Call] = []
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> ScriptedNeuron:
        await self.appear()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.disappear()

    async def appear(self) -> None:
        """Listen; on the same port as before, if there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def disappear(self) -> None:
        """As if the process were killed: connections break, new ones are refused."""
        await self.shelf.close()
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._connections):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.watchers.clear()

    async def reset(self) -> None:
        """As at first: there, obedient, with its first models; restarted, so that nobody holds
        anything against it."""
        self.script = answer_hello
        self.is_beating = True
        self.calls.clear()
        self.orders.clear()
        self.shelf.reset()
        if self._server is None:
            await self.appear()
        self._resets += 1
        boot = f"{self.name}-reset-{self._resets}"
        await self.show(boot=boot, models=self.first_state.models, draining=False)

    async def show(self, **changes: Any) -> None:
        """Change the state and send it to whoever follows. `version` counts up by itself."""
        changes.setdefault("version", self.state.version + 1)
        self.state = msgspec.structs.replace(self.state, **changes)
        if "devices" not in changes:
            self.state = msgspec.structs.replace(self.state, devices=[self._device()])
        await self.show_raw(self._event())

    async def show_raw(self, event: bytes) -> None:
        """Send bytes, whatever they are, to everybody who follows /events."""
        for watcher in list(self.watchers):
            with contextlib.suppress(ConnectionError):
                await watcher.chunk(event)

    def _event(self) -> bytes:
        return b"event: state\ndata: " + msgspec.json.encode(self.state) + b"\n\n"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                call = Call(self, head[:-4], b"", reader, writer)
                call.body = await reader.readexactly(int(call.headers.get("content-length", 0)))
                await self._answer(call)
                if call.is_closing:
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, call: Call) -> None:
        if self.token and call.headers.get("authorization") != f"Bearer {self.token}":
            error = {"message": "wrong token", "type": "x", "code": "invalid_api_key"}
            await call.answer({"error": error}, 401)
        elif call.path == "/events":
            await self._be_followed(call)
        elif call.path.partition("?")[0] in PATHS:
            self.calls.append(call)
            await self._generate(call)
        else:
            self.orders.append(call)
            if self.fails_next:
                self.fails_next = False
                call.reset()
            elif not await self.shelf.answer(call):
                await call.answer({"error": {"message": call.path, "code": "not_found"}}, 404)

    async def _generate(self, call: Call) -> None:
        """The script, while whose work its model counts as busy."""
        try:
            model = call.json["model"]
        except (ValueError, TypeError, KeyError):
            model = ""
        self.shelf.busy[model] += 1
        try:
            await self.script(call)
        finally:
            self.shelf.busy[model] -= 1

    def _device(self) -> DeviceState:
        return DeviceState(
            "cpu",
            "cpu",
            "a scripted CPU",
            WorkerState("ready", 1),
            memory_total_bytes=ROOM_BYTES,
            memory_free_bytes=self.shelf.free_bytes,
        )

    async def _be_followed(self, call: Call) -> None:
        await call.start_stream()
        await call.chunk(self._event())
        self.watchers.append(call)
        try:
            while True:
                await asyncio.sleep(BEAT_S)
                if self.is_beating:
                    await call.chunk(b": beat\n\n")
        finally:
            if call in self.watchers:
                self.watchers.remove(call)


# scripts


def completion(text: str, model: str = "m") -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }


def chunks_of(*words: str, usage: bool = False) -> list[bytes]:
    """The events of a stream, [DONE] included."""
    choices = [{"index": 0, "delta": {"content": word}} for word in words]
    choices[-1]["finish_reason"] = "stop"
    events = [{"object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
    if usage:
        events.append(
            {
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": completion("")["usage"],  # type: ignore[dict-item]
            }
        )
    sent = [b"data: " + json.dumps(event, ensure_ascii=False).encode() for event in events]
    return [event + b"\n\n" for event in [*sent, b"data: [DONE]"]]


async def answer_hello(call: Call) -> None:
    """What a healthy neuron does: a whole answer or a stream, as asked."""
    if call.json.get("stream"):
        await call.stream(*chunks_of("hel", "lo"))
    else:
        await call.answer(completion(f"hello from {call.neuron.name}"))


# values


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode()


def _model(model: str) -> ModelState:
    return ModelState(
        model, "cpu", "ready", f"/models/{model}", memory_bytes=1000, context=2048, parallel=4
    )

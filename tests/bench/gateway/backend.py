"""The cheapest possible neuron, in a process of its own: raw asyncio protocol on uvloop.

Answers a chat from prebuilt bytes, and streams by a clock: either in steps, one event to every
stream at once, as an engine that batches does; or spread, each stream on its own beat. Prints the
port it listens on.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import msgspec
import uvloop

from cortex_core.fleet.discovery import DeviceState, ModelState, NodeState, WorkerState

MODEL = "m"
STATE = NodeState(
    "bench",
    "boot",
    1,
    False,
    [DeviceState("cpu", "cpu", "bench", WorkerState("ready", 1))],
    [ModelState(MODEL, "cpu", "ready", "/m.gguf", context=4096, parallel=64)],
)
USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
ANSWER = {
    "id": "chatcmpl-0123456789",
    "object": "chat.completion",
    "created": 1700000000,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Paris is the capital of France."},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}


def chunk(text: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def event(**fields: Any) -> bytes:
    value = {
        "id": "chatcmpl-0123456789",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": MODEL,
    }
    return framed(b"data: " + msgspec.json.encode(value | fields) + b"\n\n")


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


BODY = msgspec.json.encode(ANSWER)
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
# They take turns: LiteLLM ends a stream in which one chunk comes a hundred times running.
EVENTS = (chunk(" Paris"), chunk(" Seine"))
DONE = (
    event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    + event(choices=[], usage=USAGE)
    + framed(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)
STATE_EVENT = framed(b"event: state\ndata: " + msgspec.json.encode(STATE) + b"\n\n")
BEAT = framed(b": beat\n\n")


class Clock:
    """Sends every stream its events: `gap_s` apart, `events` of them."""

    def __init__(self, gap_s: float, events: int, spread: bool) -> None:
        self.gap_s = gap_s
        self.events = events
        self.spread = spread
        self.left: dict[asyncio.Transport, int] = {}
        self.loop = asyncio.get_running_loop()
        if not spread:
            self.loop.create_task(self._tick())

    def add(self, transport: asyncio.Transport) -> None:
        transport.write(STREAM_HEAD + EVENTS[0])
        self.left[transport] = self.events - 1
        if self.spread:
            self.loop.create_task(self._beat(transport))

    async def _tick(self) -> None:
        due = self.loop.time()
        while True:
            due += self.gap_s
            await asyncio.sleep(max(0.0, due - self.loop.time()))
            for transport in list(self.left):
                self._send(transport)

    async def _beat(self, transport: asyncio.Transport) -> None:
        due = self.loop.time()
        while transport in self.left:
            due += self.gap_s
            await asyncio.sleep(max(0.0, due - self.loop.time()))
            self._send(transport)

    def _send(self, transport: asyncio.Transport) -> None:
        left = self.left.get(transport)
        if left is None or transport.is_closing():
            self.left.pop(transport, None)
        elif left:
            self.left[transport] = left - 1
            transport.write(EVENTS[left & 1])
        else:
            del self.left[transport]
            transport.write(DONE)


class Connection(asyncio.Protocol):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._clock.left.pop(self._transport, None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + size:
                return
            body = self._buffer[end + 4 : end + 4 + size]
            self._buffer = self._buffer[end + 4 + size :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get /events"):
            asyncio.get_running_loop().create_task(self._be_followed())
        elif b'"stream":true' in body or b'"stream": true' in body:
            self._clock.add(self._transport)
        else:
            self._transport.write(WHOLE)

    async def _be_followed(self) -> None:
        self._transport.write(STREAM_HEAD + STATE_EVENT)
        while True:
            await asyncio.sleep(2)
            if self._transport.is_closing():
                return
            self._transport.write(BEAT)


async def serve(gap_s: float, events: int, spread: bool) -> None:
    clock = Clock(gap_s, events, spread)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(clock), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the bench lets go


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gap-ms", type=float, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--spread", action="store_true")
    given = parser.parse_args()
    uvloop.run(serve(given.gap_ms / 1000, given.events, given.spread))

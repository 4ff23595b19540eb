"""The load for streams, in a process of its own: raw protocol on uvloop, one request after another
on each connection. Prints what it measured as JSON; times are in seconds.

An event that arrives in the same read as another has a gap of zero: that is what a client sees.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import uvloop

_QUESTION = "What is the capital?"
_TURN = {"messages": [{"role": "user", "content": _QUESTION}]}
_ASK = {"model": "m", "stream": True}
# By path: the body, and what the last event of a whole answer holds.
PATHS: dict[str, tuple[dict[str, Any], bytes]] = {
    "/v1/chat/completions": (_ASK | _TURN, b"[DONE]"),
    "/v1/messages": (_ASK | _TURN | {"max_tokens": 100_000}, b"event: message_stop"),
    "/v1/responses": (_ASK | {"input": _QUESTION, "store": False}, b"event: response.completed"),
}


class Client(asyncio.Protocol):
    def __init__(self, run: Run) -> None:
        self._run = run
        self._tail = b""
        self._last = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.broken += not self._run.is_over

    def ask(self) -> None:
        self._asked = time.perf_counter()
        self._last = 0.0
        self._tail = b""
        self._is_whole = False
        self._transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        events = data.count(b"data: {")
        run = self._run
        if events:
            if run.began <= now <= run.ends:
                run.events += events
                if self._last:
                    run.gaps.append(now - self._last)
                    run.gaps.extend([0.0] * (events - 1))
                else:
                    run.ttfts.append(now - self._asked)
            self._last = now
        data = self._tail + data
        self._is_whole = self._is_whole or run.mark in data
        self._tail = data[-64:]
        if self._tail.endswith(b"\n0\r\n\r\n"):
            run.streams += 1
            run.broken += not self._is_whole
            if now < run.ends:
                self.ask()
            else:
                self._transport.close()


class Run:
    def __init__(self, host: str, port: int, path: str, warm_s: float, for_s: float) -> None:
        body, self.mark = PATHS[path]
        content = json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        self.request = head.encode() + content
        self.began = time.perf_counter() + warm_s
        self.ends = self.began + for_s
        self.gaps: list[float] = []
        self.ttfts: list[float] = []
        self.events = self.streams = self.broken = 0

    @property
    def is_over(self) -> bool:
        return time.perf_counter() > self.ends


def percentiles(values: list[float]) -> dict[str, float]:
    values.sort()
    if not values:
        return {}
    return {
        name: values[min(len(values) - 1, int(len(values) * part))]
        for name, part in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
    }


async def measure(
    host: str, port: int, path: str, streams: int, warm_s: float, for_s: float
) -> None:
    run = Run(host, port, path, warm_s, for_s)
    loop = asyncio.get_running_loop()
    for _ in range(streams):
        await loop.create_connection(lambda: Client(run), host, port)
        await asyncio.sleep(warm_s / 2 / streams)
    await asyncio.sleep(max(0.0, run.ends - time.perf_counter()) + 0.2)
    result = {
        "events_per_s": run.events / for_s,
        "streams": run.streams,
        "broken": run.broken,
        "gap": percentiles(run.gaps),
        "ttft": percentiles(run.ttfts),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--path", choices=list(PATHS), default="/v1/chat/completions")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--warm-s", type=float, default=2.0)
    parser.add_argument("--for-s", type=float, default=10.0)
    given = parser.parse_args()
    host, port = given.address.rsplit(":", 1)
    uvloop.run(measure(host, int(port), given.path, given.streams, given.warm_s, given.for_s))

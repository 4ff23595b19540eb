"""One HTTP exchange of a generating route, over raw ASGI: the head when it is due, one write per
batch, a sign of life through silence, an error in the shape the moment allows, and the outcome.

The edge outside takes care of request ids, tokens and body limits.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.types import Message, Receive, Scope, Send

from cortex_core.errors import CortexError, RequestError, Stalled, Unavailable, render_openai
from cortex_core.outcome import Outcome, OutcomeKind, Usage
from cortex_core.wire import ipc, sse
from neuron import logs
from neuron.answers import error_answer
from neuron.precedence import Precedence, precedence_of

__all__ = ["ClientGone", "Exchange", "Record", "cache_header"]

_log = logs.get(__name__)
_encode = msgspec.json.Encoder().encode
_NO_WORD = re.compile(r"[^A-Za-z0-9_.-]+")


Record = Callable[[Outcome], None]
"""Who counts outcomes."""


class ClientGone(Exception):
    """Nobody reads the answer any more."""


class Exchange:
    """Answers one request, and collects what is known of it for its outcome.

    `record` gets the outcome. A client that takes nothing of what is being sent for
    `reader_timeout_s` has left. `started` and `usage` are to be set as soon as the worker told of
    them, `opening` to what a stream's first write begins with.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        node: str | None,
        record: Record | None = None,
        *,
        reader_timeout_s: float,
    ) -> None:
        self.headers = Headers(scope=scope)
        self.model = ""
        self.is_stream = False
        self.ignored: list[str] = []
        self.started: ipc.Started | None = None
        self.usage: Usage | None = None
        self.opening = b""
        self.is_open = False  # the head was sent
        self._scope = scope
        self._receive = receive
        self._send = send
        self._node = node
        self._record = record
        self._reader_timeout_s = reader_timeout_s
        self._sending_since: float | None = None
        self._sending = asyncio.Lock()  # a keep-alive and a chunk may fall due together
        self._clock = asyncio.get_running_loop().time
        self._since = self._clock()
        self._first_text_s: float | None = None
        self._silence_s = 0.0
        self._alive_due = 0.0

    @property
    def query(self) -> QueryParams:
        return QueryParams(self._scope.get("query_string", b""))

    @property
    def precedence(self) -> Precedence:
        """Whose request this is, and how urgent. Raises InvalidRequest that names a header."""
        client = self._scope.get("client")
        return precedence_of(self.headers, client[0] if client else "")

    async def read_body(self) -> bytes:
        """The whole request body. Raises ClientGone, and the edge's RequestTooLarge."""
        chunks: list[bytes] = []
        is_whole = False
        while not is_whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunks.append(message.get("body", b""))
            is_whole = not message.get("more_body", False)
        return b"".join(chunks)

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, and cancel it the moment the client leaves; then raises ClientGone.

        From ASGI 2.4 on a server need not fail a send to a client who has left, and before the
        first token there is nothing to send anyway; so `receive` is what tells. One that neither
        leaves nor reads is told by a timer: what it is not given is held for it in the worker.
        """
        working = asyncio.create_task(work)
        watching = asyncio.create_task(self._disconnect())

        def look() -> None:
            nonlocal timer
            now, since = self._clock(), self._sending_since
            due = (now if since is None else since) + self._reader_timeout_s
            if now < due:
                timer = loop.call_at(due, look)
            else:
                working.cancel()

        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._reader_timeout_s, look)
        try:
            await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            watching.cancel()
            working.cancel()
            await asyncio.wait([working, watching])
        if working.cancelled():
            raise ClientGone
        working.result()

    def saw_text(self) -> None:
        if self._first_text_s is None:
            self._first_text_s = self._clock() - self._since

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """A part of a stream; the first write sends the head. Raises ClientGone."""
        async with self._sending:
            if not self.is_open:
                self.is_open = True
                await self._send_head(b"text/event-stream", [(b"cache-control", b"no-cache")])
            if self.opening:
                data, self.opening = self.opening + data, b""
            await self._emit({"type": "http.response.body", "body": data, "more_body": not last})
            self._alive_due = self._clock() + self._silence_s

    async def respond(self, value: Any) -> None:
        """The whole answer, as JSON. Raises ClientGone."""
        body = _encode(value)
        self.is_open = True
        await self._send_head(b"application/json", [(b"content-length", b"%d" % len(body))])
        await self._emit({"type": "http.response.body", "body": body})

    async def fail(self, error: CortexError) -> None:
        """Tell the client: with status and envelope, or, if a stream is open, by an error event
        after which it ends without the end mark that stands for success."""
        with suppress(ClientGone):
            if self.is_open:
                await self.write(sse.encode(_encode(render_openai(error))), last=True)
            else:
                await error_answer(error)(self._scope, self._receive, self._emit)
        self.end(_kind(error), error.status, error.code)

    def end(self, kind: OutcomeKind, status: int = 200, code: str | None = None) -> None:
        outcome = Outcome(
            kind=kind,
            request_id=self.headers.get("x-request-id", ""),
            model=self.model,
            node=self._node,
            status=status,
            code=code,
            streamed=self.is_stream,
            usage=self.usage,
            ttft_s=self._first_text_s,
            total_s=self._clock() - self._since,
        )
        if self._record is not None:
            self._record(outcome)
        facts = msgspec.structs.asdict(outcome)
        facts |= msgspec.structs.asdict(facts.pop("usage") or Usage())
        _log.info("request", **facts)

    @asynccontextmanager
    async def kept_alive(self, silence_s: float, every_s: float) -> AsyncIterator[None]:
        """Open the stream after `silence_s` at the latest, and send a comment after so much
        silence, then every `every_s`. A timer, not a task: a lively stream pays nothing for it."""
        loop = asyncio.get_running_loop()
        self._silence_s = silence_s
        self._alive_due = self._clock() + silence_s
        writing: asyncio.Task[None] | None = None

        async def write() -> None:
            with suppress(ClientGone):  # whoever reads or writes next will notice
                await self.write(sse.KEEP_ALIVE)
                self._alive_due = self._clock() + every_s

        def look() -> None:
            nonlocal timer, writing
            if self._clock() < self._alive_due:
                timer = loop.call_at(self._alive_due, look)
                return
            if not self._sending.locked():  # a blocked write is a slow client, not silence
                writing = loop.create_task(write())
            timer = loop.call_later(every_s, look)

        timer = loop.call_at(self._alive_due, look)
        try:
            yield
        finally:
            timer.cancel()
            if writing is not None:
                writing.cancel()
                await asyncio.wait([writing])

    async def _send_head(self, content_type: bytes, more: list[tuple[bytes, bytes]]) -> None:
        headers = [(b"content-type", content_type), *more]
        if self.started is not None:
            headers.append((b"x-cortex-cache", cache_header(self.started)))
        if self.ignored:
            headers.append((b"x-cortex-ignored", ", ".join(self.ignored).encode("ascii")))
        await self._emit({"type": "http.response.start", "status": 200, "headers": headers})

    async def _emit(self, message: Message) -> None:
        self._sending_since = self._clock()
        try:
            await self._send(message)
        except OSError:  # ASGI 2.4: how some servers tell of a disconnect
            raise ClientGone from None
        finally:
            self._sending_since = None

    async def _disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def cache_header(started: ipc.Started) -> bytes:
    """What `x-cortex-cache` says: prompt tokens reused and computed, where the reused ones came
    from, and when there were none, why."""
    reused, computed = started.cached, started.prompt - started.cached
    text = f"reused={reused} computed={computed} source={started.source}"
    if started.source == "none" and started.miss:
        text += f" miss={_NO_WORD.sub('-', started.miss)}"
    return text.encode("ascii")


def _kind(error: CortexError) -> OutcomeKind:
    if isinstance(error, RequestError | Unavailable):
        return "rejected"
    return "stalled" if isinstance(error, Stalled) else "upstream_failed"

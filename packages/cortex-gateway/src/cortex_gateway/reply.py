"""The client's side of one exchange: what it has been sent, and what can still be said to it.

A streaming client that has heard nothing for a while gets the head of a stream and signs of life.
They are no answer: until one has begun, another node may still be asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from cortex_core.errors import CortexError, MethodNotAllowed
from cortex_gateway.dialects import Voice
from cortex_gateway.edge import Send, error_head, send_despite_body
from cortex_gateway.vigil import ClientGone, Receive, Vigil

__all__ = ["EVENT_STREAM", "Reply"]

EVENT_STREAM = (b"content-type", b"text/event-stream")

# For the last words to a client whose answer broke off; it may have stopped reading long ago.
LAST_WORDS_S = 5.0

RawHeaders = list[tuple[bytes, bytes]]

_log = logging.getLogger("cortex.proxy")


class Reply:
    """Only the exchange's own task calls it, except for `keep_alive`, which is for its vigil's
    timer. Everything that waits for the client raises ClientGone.

    `named`: the headers that name the request. `voice`: who words what no node says. `status`: what
    the client was told, 0 before its head. `stream_head`: the headers of a stream that is to come,
    so far as they are known. `is_answering`: a part of an answer was sent. `is_mid_event`: the last
    byte that was sent is inside an event. `first_byte_s`: when the answer began, in seconds after
    the request.
    """

    __slots__ = (
        "_began",
        "_idle_timeout_s",
        "_is_event_stream",
        "_named",
        "_send",
        "_speaking",
        "first_byte_s",
        "is_answering",
        "is_mid_event",
        "status",
        "stream_head",
        "vigil",
        "voice",
    )

    vigil: Vigil

    def __init__(
        self, send: Send, voice: Voice, named: RawHeaders, began: float, idle_timeout_s: float
    ) -> None:
        self._send = send
        self._named = named
        self._began = began
        self._idle_timeout_s = idle_timeout_s
        self._is_event_stream = False
        self._speaking: asyncio.Task[None] | None = None
        self.voice = voice
        self.status = 0
        self.stream_head: RawHeaders = [EVENT_STREAM]
        self.is_answering = False
        self.is_mid_event = False
        self.first_byte_s: float | None = None

    async def begin(self, status: int, headers: RawHeaders, *, is_stream: bool = False) -> None:
        """The head of an answer, unless a keep-alive has sent one."""
        self.vigil.sending(self._idle_timeout_s)
        if self._speaking is not None:
            await self._fall_silent()
        self.is_answering = True
        self.first_byte_s = time.perf_counter() - self._began
        if not self.status:
            self._is_event_stream = is_stream
            await self._open(status, headers)
        self.vigil.sent(self._idle_timeout_s)

    async def pass_on(self, chunk: bytes) -> None:
        """Send a piece; however long the client takes for it, the node's time begins anew."""
        vigil = self.vigil
        vigil.sending(self._idle_timeout_s)
        if self._speaking is not None:
            await self._fall_silent()
        try:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        except OSError:
            raise ClientGone("the client's connection failed") from None
        vigil.sent(self._idle_timeout_s)

    async def finish(self, last: bytes = b"") -> None:
        vigil = self.vigil
        vigil.is_finishing = True
        vigil.sending(self._idle_timeout_s)
        if self._speaking is not None:
            await self._fall_silent()
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def keep_alive(self) -> None:
        """Say that the request is being minded, where that can be said: not within an event, nor
        in an answer that is no stream. Waits for nothing; a client that has not taken the last
        such word gets no other."""
        if self.is_mid_event or (self.status and not self._is_event_stream):
            return
        if self._speaking is not None and not self._speaking.done():
            return
        # Worded now, because an answer's first events, which may come next, build on it.
        word = self.voice.keep_alive()
        self._speaking = asyncio.get_running_loop().create_task(self._speak(word))

    async def fail(
        self, error: CortexError, node: str | None, unread: Receive | None = None
    ) -> None:
        """Tell the client: with a typed error, or, where something was sent, as that allows.
        `unread`: its request's body, where that is still coming in."""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._fall_silent()
                if not self.status:
                    await self._refuse(error, node, unread)
                elif self._is_event_stream:
                    event = self.voice.error_event(error)
                    event = b"\n\n" + event if self.is_mid_event else event
                    await self._send({"type": "http.response.body", "body": event})
                # else: the server closes the connection of an answer that was left unfinished
        except (TimeoutError, OSError):
            request_id = self._named[0][1].decode()
            _log.info('"the client did not take its error" request_id=%s', request_id)

    async def close(self) -> None:
        """Leave nothing running."""
        if self._speaking is not None:
            self._speaking.cancel()
            await asyncio.wait([self._speaking])

    async def _open(self, status: int, headers: RawHeaders) -> None:
        self.status = status
        headers += self._named
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _refuse(self, error: CortexError, node: str | None, unread: Receive | None) -> None:
        body = self.voice.error_body(error)
        headers = error_head(error)
        headers.append((b"content-length", b"%d" % len(body)))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", b"POST"))
        if node is not None:
            headers.append((b"x-cortex-node", node.encode()))
        headers += self._named
        self.status = error.status
        start = {"type": "http.response.start", "status": error.status, "headers": headers}
        if unread is not None:
            await send_despite_body(unread, self._send, start, body)
        else:
            await self._send(start)
            await self._send({"type": "http.response.body", "body": body})

    async def _speak(self, word: bytes) -> None:
        with contextlib.suppress(OSError):  # whoever writes next will notice
            if not self.status:
                self._is_event_stream = True
                await self._open(200, self.stream_head)
            await self._send({"type": "http.response.body", "body": word, "more_body": True})

    async def _fall_silent(self) -> None:
        """Let a keep-alive that is being sent be sent in full: two must not write at once."""
        if self._speaking is not None:
            speaking, self._speaking = self._speaking, None
            await speaking

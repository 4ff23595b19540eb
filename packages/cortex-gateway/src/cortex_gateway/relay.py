"""One node's answer on its way to the client: whole or as a stream, as it is or translated.

Until the answer has begun, a failure is a NodeFault, and another node may still be asked.
"""

from __future__ import annotations

from collections.abc import Callable

import aiohttp

from cortex_core.errors import CortexError, UpstreamFailed
from cortex_core.outcome import OutcomeKind, Usage
from cortex_core.translate.translation import Translation
from cortex_gateway.answer import (
    ELSEWHERE,
    NodeFault,
    Whole,
    cache_in,
    cached_in,
    judge,
    kind_of,
    passed_headers,
    with_ignored,
)
from cortex_gateway.reply import EVENT_STREAM, Reply
from cortex_gateway.tail import MAX_EVENT_BYTES, MAX_HELD_BYTES, StreamTail, is_comment, parted
from cortex_gateway.upstream import NETWORK_ERRORS

__all__ = ["Relay"]

# An answer that is not a stream is sent when it is here in full, so that a node that fails in the
# middle of it costs the client nothing; beyond this size it is passed on as it comes.
HELD_BYTES = 1024 * 1024


class Relay:
    """`is_generating`: what is asked for is a completion. `usage`, `cache`, `kind` and `code` are
    what the answer said of itself, for the outcome. `on_begin` is called as the answer begins."""

    __slots__ = (
        "_idle_timeout_s",
        "_is_generating",
        "_node",
        "_reply",
        "_translation",
        "cache",
        "code",
        "kind",
        "on_begin",
        "usage",
    )

    def __init__(self, reply: Reply, idle_timeout_s: float, *, is_generating: bool) -> None:
        self._reply = reply
        self._is_generating = is_generating
        self._idle_timeout_s = idle_timeout_s
        self._translation: Translation | None = None
        self._node = ""
        self.kind: OutcomeKind = "ok"
        self.code: str | None = None
        self.usage: Usage | None = None
        self.cache: str | None = None
        self.on_begin: Callable[[], None] | None = None

    def translate_with(self, translation: Translation) -> None:
        """What is passed on from here, and said instead, is in the translation's dialect."""
        self._translation = self._reply.voice = translation
        self.start_over()

    def start_over(self) -> None:
        """What a node told before its answer began is void: another will be asked."""
        self._reply.stream_head = [EVENT_STREAM]
        if self._translation is not None:
            said = self._translation
            self._reply.stream_head += with_ignored([], said.ignored, said.names)

    async def pass_on(self, node: str, response: aiohttp.ClientResponse) -> None:
        """Raises NETWORK_ERRORS, CortexError, and NodeFault as long as the answer has not begun."""
        self._node = node
        if response.status == 200 and response.content_type == "text/event-stream":
            await self._pass_stream(response)
        else:
            await self._pass_whole(response)

    async def send_whole(self, answer: Whole) -> None:
        if self._reply.status:
            raise answer.error or self._no_stream()
        self.usage = answer.usage
        self.cache = cache_in(answer.headers)
        body = answer.body
        translation = self._translation
        headers = answer.headers
        if translation is not None:
            headers = with_ignored(headers, translation.ignored, translation.names)
        if answer.error is not None:
            self.kind = kind_of(answer.error, answer.status, was_forwarded=True)
            self.code = answer.error.code
            if translation is not None:
                body = translation.error_body(answer.error)
        elif translation is not None:
            self._tell_started(translation)
            body = translation.whole(body)
        headers.append((b"content-length", b"%d" % len(body)))
        await self._begin(answer.status, headers)
        await self._reply.finish(body)

    async def _pass_whole(self, response: aiohttp.ClientResponse) -> None:
        """An answer that is no stream: held until it is complete, so that it can be judged."""
        content = response.content
        body = await content.readany()
        while not content.at_eof():
            if len(body) > HELD_BYTES and self._translation is None:
                await self._pass_long(response, body)
                return
            self._reply.vigil.expect(self._idle_timeout_s)
            body += await content.readany()
        await self.send_whole(
            judge(
                self._node,
                response.status,
                response.raw_headers,
                body,
                is_completion=self._is_generating,
            )
        )

    async def _pass_long(self, response: aiohttp.ClientResponse, chunk: bytes) -> None:
        """A body too long to hold. Should it break off, so does the client's connection."""
        if self._reply.status:
            raise self._no_stream()
        headers = passed_headers(response.raw_headers)
        if response.content_length is not None:
            headers.append((b"content-length", b"%d" % response.content_length))
        await self._begin(response.status, headers)
        while chunk:
            await self._reply.pass_on(chunk)
            chunk = await response.content.readany()
        await self._reply.finish()

    async def _pass_stream(self, response: aiohttp.ClientResponse) -> None:
        """A stream, event by event. Its first event that is no sign of life begins the answer."""
        reply = self._reply
        translation = self._translation
        tail = StreamTail(MAX_HELD_BYTES if translation is None else MAX_EVENT_BYTES)
        reply.stream_head = passed_headers(response.raw_headers)
        self.cache = cache_in(reply.stream_head)
        if translation is not None:
            ignored, names = translation.ignored, translation.names
            reply.stream_head = with_ignored(reply.stream_head, ignored, names)
        comments = b""
        read = response.content.readany
        try:
            while chunk := await read():
                ready = tail.feed(chunk)
                if not ready:
                    continue
                if not reply.is_answering:
                    if is_comment(ready):
                        comments = await self._mind(comments + ready)
                        continue
                    await self._begin_stream(ready)
                    if translation is None:
                        ready = comments + ready
                if translation is None:
                    reply.is_mid_event = tail.is_mid_event
                    await reply.pass_on(ready)
                elif tail.is_mid_event:
                    raise UpstreamFailed(f"the node {self._node} sent an event without end")
                else:
                    await self._pass_translated(translation, ready)
        except NETWORK_ERRORS:
            # What follows `[DONE]` is nobody's loss.
            if not tail.is_done:
                raise
        finally:
            self.usage = tail.usage
        await self._end_stream(tail)

    async def _mind(self, comments: bytes) -> bytes:
        """A node's signs of life before its answer: passed on where a stream is open, kept for one
        otherwise. Returns what is kept."""
        if self._reply.status and self._translation is None:
            await self._reply.pass_on(comments)
            return b""
        self._reply.vigil.expect(self._idle_timeout_s)
        return comments[:MAX_HELD_BYTES]

    async def _begin_stream(self, ready: bytes) -> None:
        """Raises what a stream that begins with an error says: the client may hear it as such, or
        another node may do better."""
        before, error = parted(ready)
        if error is not None and (not before or is_comment(before)):
            if error.status in ELSEWHERE:
                raise NodeFault(error)
            raise error
        if self._translation is not None:
            self._tell_started(self._translation)
        await self._begin(200, self._reply.stream_head, is_stream=True)

    async def _pass_translated(self, translation: Translation, ready: bytes) -> None:
        events, error = parted(ready)
        said = translation.feed(events) if events and not is_comment(events) else b""
        if said:
            await self._reply.pass_on(said)
        else:
            self._reply.vigil.expect(self._idle_timeout_s)
        if error is not None:
            raise error

    async def _end_stream(self, tail: StreamTail) -> None:
        reply = self._reply
        if not reply.is_answering and not tail.is_done:
            raise NodeFault(UpstreamFailed(f"the node {self._node} sent a stream without an event"))
        self.code = tail.error_code
        if self.code is not None:
            self.kind = "stalled" if self.code == "stalled" else "upstream_failed"
        elif not tail.is_done:
            raise self._incomplete()
        last = tail.flush()
        if not reply.is_answering:
            await self._begin_stream(last)
        translation = self._translation
        if translation is not None:
            if last and (last := translation.feed(last.rstrip() + b"\n\n")):
                await reply.pass_on(last)
            if not translation.is_ended:
                raise self._incomplete()
            last = b""
        await reply.finish(last)

    async def _begin(
        self, status: int, headers: list[tuple[bytes, bytes]], *, is_stream: bool = False
    ) -> None:
        if self.on_begin is not None:
            self.on_begin()
        headers.append((b"x-cortex-node", self._node.encode()))
        self._reply.vigil.stalled_message = (
            f"the node {self._node} sent nothing for {self._idle_timeout_s:g} s"
            " in the middle of its answer"
        )
        await self._reply.begin(status, headers, is_stream=is_stream)

    def _tell_started(self, translation: Translation) -> None:
        found = cached_in(self.cache or "")
        if found is not None:
            translation.started(*found)

    def _incomplete(self) -> CortexError:
        return UpstreamFailed(f"the node {self._node} ended its stream before it was complete")

    def _no_stream(self) -> CortexError:
        return UpstreamFailed(f"the node {self._node} answered a stream with something else")

"""The hot path: every POST that a model answers, raw ASGI, passed through byte for byte.

Reads a request, routes it, forwards it, passes the answer on, and ends in exactly one Outcome. It
never changes what a neuron said; it adds headers, and an error event where a stream broke off.
Before the first byte of an answer a failure may be mended by one more try; after it, the client is
told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import aiohttp

from cortex_core.config.gateway import GatewaySection
from cortex_core.errors import CortexError, InternalError, MethodNotAllowed, UpstreamFailed
from cortex_core.fleet.topology import Replica
from cortex_core.outcome import Outcome, OutcomeKind, Usage
from cortex_core.wire import sse
from cortex_gateway.admission import Admission
from cortex_gateway.answer import NodeFault, Whole, judge, kind_of, passed_headers
from cortex_gateway.caller import caller_of
from cortex_gateway.edge import (
    Send,
    error_body,
    error_head,
    has_body,
    request_id_of,
    send_despite_body,
)
from cortex_gateway.fleet import Fleet
from cortex_gateway.intake import decode_head, read_body
from cortex_gateway.tail import StreamTail
from cortex_gateway.upstream import NETWORK_ERRORS, Upstream, cause_of, fault_of
from cortex_gateway.vigil import ClientGone, Receive, Vigil

__all__ = ["PATHS", "Proxy"]

PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/tokenize",
        "/detokenize",
    }
)
"""What is forwarded, to the same path of a neuron. Of each body only `model` and `stream` are read
here."""

CLIENT_GONE_STATUS = 499  # nginx's number; never sent, only counted

# An answer that is not a stream is sent when it is here in full, so that a node that fails in the
# middle of it costs the client nothing; beyond this size it is passed on as it comes.
HELD_BYTES = 1024 * 1024

# For the last words to a client whose answer broke off; it may have stopped reading long ago.
LAST_WORDS_S = 5.0

# The client's headers that a neuron acts on. Nothing else is passed: an Authorization is meant for
# the gateway, and the rest is between the client and the gateway.
FORWARDED = {
    b"x-include-thinking": "X-Include-Thinking",
    b"x-cortex-priority": "X-Cortex-Priority",
}

_log = logging.getLogger("cortex.proxy")


class Proxy:
    """The ASGI app of the hot path. One `_Exchange` per request."""

    def __init__(
        self,
        settings: GatewaySection,
        fleet: Fleet,
        upstream: Upstream,
        admission: Admission,
        record: Callable[[Outcome], None],
    ) -> None:
        self.settings = settings
        self.max_body_bytes = settings.max_body_mb * 1024 * 1024
        self.fleet = fleet
        self.upstream = upstream
        self.admission = admission
        self.record = record

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await _Exchange(self, scope, receive, send).run()


class _Exchange:
    """One request from its head to its outcome."""

    __slots__ = (
        "_began",
        "_client",
        "_code",
        "_first_byte_s",
        "_headers",
        "_is_body_read",
        "_is_event_stream",
        "_is_mid_event",
        "_is_started",
        "_kind",
        "_method",
        "_model",
        "_node",
        "_path",
        "_proxy",
        "_receive",
        "_request_id",
        "_send",
        "_status",
        "_streamed",
        "_usage",
        "_vigil",
    )

    _vigil: Vigil

    def __init__(
        self, proxy: Proxy, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        self._began = time.perf_counter()
        self._proxy = proxy
        self._method: str = scope["method"]
        self._path: str = scope["path"]
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._client: str = scope["client"][0] if scope.get("client") else ""
        self._receive = receive
        self._send = send
        self._request_id = request_id_of(self._headers)
        self._model = ""
        self._node: str | None = None
        self._streamed = False
        self._is_body_read = False
        self._is_started = False
        self._is_event_stream = False
        self._is_mid_event = False
        self._status = 0
        self._kind: OutcomeKind = "ok"
        self._code: str | None = None
        self._usage: Usage | None = None
        self._first_byte_s: float | None = None

    async def run(self) -> None:
        proxy = self._proxy
        try:
            if self._method != "POST":
                raise MethodNotAllowed("this route answers to POST")
            with proxy.admission:
                body = await read_body(self._receive, self._headers, proxy.max_body_bytes)
                self._is_body_read = True
                await self._serve(body)
        except ClientGone:
            self._kind = "client_gone"
            self._status = CLIENT_GONE_STATUS
        except CortexError as error:
            await self._fail(error)
        except Exception:
            _log.exception('"a bug" request_id=%s', self._request_id.decode())
            await self._fail(InternalError("the gateway failed; its log says how"))
        finally:
            proxy.record(self._outcome())

    def _outcome(self) -> Outcome:
        return Outcome(
            self._kind,
            self._request_id.decode(),
            self._model,
            self._node,
            self._status,
            self._code,
            self._streamed,
            self._usage,
            self._first_byte_s,
            time.perf_counter() - self._began,
        )

    # asking

    async def _serve(self, body: bytes) -> None:
        proxy = self._proxy
        self._model, self._streamed = decode_head(body)
        headers = {
            "Content-Type": "application/json",
            "X-Request-Id": self._request_id.decode(),
            "X-Cortex-Caller": caller_of(self._headers, self._client),
        }
        for name, value in self._headers:
            if name in FORWARDED:
                headers[FORWARDED[name]] = value.decode("latin-1")
        with Vigil(self._receive, proxy.settings.first_byte_timeout_s) as vigil:
            self._vigil = vigil
            proxy.admission.watch(vigil)
            try:
                replica = await proxy.fleet.route(self._model)
                await self._try(replica, body, headers)
            finally:
                proxy.admission.unwatch(vigil)

    async def _try(self, replica: Replica, body: bytes, headers: dict[str, str]) -> None:
        """Ask `replica`; when it fails before its first byte, ask one more."""
        fleet = self._proxy.fleet
        try:
            with fleet.seat(replica.node):
                return await self._forward(replica.node, body, headers)
        except NodeFault as fault:
            first = fault
        try:
            other = await fleet.route(replica.model, frozenset({replica.node}))
        except CortexError:
            if not first.may_ask_again:
                return await self._give_up(first)
            other = replica
        _log.info(
            '"asking again" request_id=%s from=%s to=%s cause="%s"',
            self._request_id.decode(),
            replica.node,
            other.node,
            first.error.message,
        )
        try:
            with fleet.seat(other.node):
                return await self._forward(other.node, body, headers)
        except NodeFault as fault:
            return await self._give_up(fault)

    async def _give_up(self, fault: NodeFault) -> None:
        """Nobody is left to ask: the neuron's own words, where it said any, else ours."""
        if fault.answer is None:
            raise fault.error
        await self._send_whole(fault.answer)

    async def _forward(self, node: str, body: bytes, headers: dict[str, str]) -> None:
        """Ask one node and pass its answer on. Raises NodeFault only before the first byte."""
        self._node = node
        self._is_event_stream = False
        first_byte_s = self._proxy.settings.first_byte_timeout_s
        self._vigil.stalled_message = f"the node {node} sent nothing for {first_byte_s:g} s"
        self._vigil.expect(first_byte_s)
        response = None
        try:
            response = await self._proxy.upstream.neurons[node].post(self._path, body, headers)
            if response.status == 200 and response.content_type == "text/event-stream":
                await self._pass_stream(response)
            else:
                await self._pass_whole(response)
        except NETWORK_ERRORS as error:
            if self._is_started:
                raise UpstreamFailed(
                    f"the node {node} failed in the middle of its answer: {cause_of(error)}"
                ) from None
            # A kept-alive connection may have been closing just as the request was sent.
            may_ask_again = (
                response is None
                and isinstance(error, aiohttp.ServerDisconnectedError | OSError)
                and not isinstance(error, aiohttp.ClientConnectorError)
            )
            raise NodeFault(fault_of(node, error), may_ask_again=may_ask_again) from None
        finally:
            if response is not None:
                response.close()  # a connection whose answer was read to its end is kept

    # answering

    async def _pass_whole(self, response: aiohttp.ClientResponse) -> None:
        """An answer that is no stream: held until it is complete, so that it can be judged."""
        node = self._node or ""
        content = response.content
        body = await content.readany()
        while not content.at_eof():
            if len(body) > HELD_BYTES:
                return await self._pass_long(response, body)
            self._vigil.expect(self._proxy.settings.idle_timeout_s)
            body += await content.readany()
        return await self._send_whole(judge(node, response.status, response.raw_headers, body))

    async def _send_whole(self, answer: Whole) -> None:
        self._usage = answer.usage
        if answer.error is not None:
            self._kind = kind_of(answer.error, answer.status, was_forwarded=True)
            self._code = answer.error.code
        answer.headers.append((b"content-length", b"%d" % len(answer.body)))
        await self._start(answer.status, answer.headers)
        await self._finish(answer.body)

    async def _pass_long(self, response: aiohttp.ClientResponse, chunk: bytes) -> None:
        """A body too long to hold. Should it break off, so does the client's connection."""
        headers = passed_headers(response.raw_headers)
        if response.content_length is not None:
            headers.append((b"content-length", b"%d" % response.content_length))
        await self._start(response.status, headers)
        while chunk:
            await self._pass(chunk)
            chunk = await response.content.readany()
        await self._finish()

    async def _pass_stream(self, response: aiohttp.ClientResponse) -> None:
        """A stream, event by event. Its head waits for its first whole event: until then the
        client has heard nothing, and another node may still be asked."""
        tail = StreamTail()
        self._is_event_stream = True
        read = response.content.readany
        try:
            while chunk := await read():
                ready = tail.feed(chunk)
                if ready:
                    if not self._is_started:
                        await self._start(200, passed_headers(response.raw_headers))
                    await self._pass(ready)
        except NETWORK_ERRORS:
            # What follows `[DONE]` is nobody's loss.
            if not tail.is_done:
                raise
        finally:
            self._is_mid_event = tail.is_mid_event
            self._usage = tail.usage
        if not self._is_started and not tail.is_done:
            raise NodeFault(UpstreamFailed(f"the node {self._node} sent a stream without an event"))
        self._code = tail.error_code
        if self._code is not None:
            self._kind = "stalled" if self._code == "stalled" else "upstream_failed"
        elif not tail.is_done:
            raise UpstreamFailed(f"the node {self._node} ended its stream before it was complete")
        if not self._is_started:
            await self._start(200, passed_headers(response.raw_headers))
        await self._finish(tail.flush())

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        headers.append((b"x-request-id", self._request_id))
        if self._node is not None:
            headers.append((b"x-cortex-node", self._node.encode()))
            self._vigil.stalled_message = (
                f"the node {self._node} sent nothing for {self._proxy.settings.idle_timeout_s:g} s"
                " in the middle of its answer"
            )
        self._status = status
        self._is_started = True
        self._first_byte_s = time.perf_counter() - self._began
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _pass(self, chunk: bytes) -> None:
        """Send a piece; however long the client takes for it, the node's time begins anew."""
        vigil = self._vigil
        idle_s = self._proxy.settings.idle_timeout_s
        vigil.is_sending = True
        vigil.expect(idle_s)
        try:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        except OSError:
            raise ClientGone("the client's connection failed") from None
        vigil.is_sending = False
        vigil.expect(idle_s)

    async def _finish(self, last: bytes = b"") -> None:
        vigil = self._vigil
        vigil.is_finishing = vigil.is_sending = True
        vigil.expect(self._proxy.settings.idle_timeout_s)
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def _fail(self, error: CortexError) -> None:
        """Tell the client: with a typed error, or, where an answer has begun, as that allows."""
        self._code = error.code
        self._kind = kind_of(error, error.status, was_forwarded=self._node is not None)
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                if not self._is_started:
                    await self._refuse(error)
                elif self._is_event_stream:
                    event = sse.encode(error_body(error))
                    event = b"\n\n" + event if self._is_mid_event else event
                    await self._send({"type": "http.response.body", "body": event})
                # else: the server closes the connection of an answer that was left unfinished
        except (TimeoutError, OSError):
            _log.info(
                '"the client did not take its error" request_id=%s', self._request_id.decode()
            )

    async def _refuse(self, error: CortexError) -> None:
        self._status = error.status
        body = error_body(error)
        headers = error_head(error)
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"x-request-id", self._request_id))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", b"POST"))
        if self._node is not None:
            headers.append((b"x-cortex-node", self._node.encode()))
        start = {"type": "http.response.start", "status": error.status, "headers": headers}
        if not self._is_body_read and has_body(self._headers):
            await send_despite_body(self._receive, self._send, start, body)
            return
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

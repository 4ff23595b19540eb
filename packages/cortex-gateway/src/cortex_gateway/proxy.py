"""The hot path: every POST that a model answers, raw ASGI.

Reads a request, waits for its seat in the fleet, forwards it, has the answer relayed, and ends in
exactly one Outcome. What a neuron says is never changed, except into the dialect that its client
speaks; headers are added, and an error event where a stream broke off. Before an answer has begun
another replica may mend a failure; after that, the client is told.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import aiohttp

from cortex_core.config.gateway import GatewaySection
from cortex_core.errors import (
    CortexError,
    Fault,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NodeUnavailable,
    NotFound,
    Stalled,
    UpstreamFailed,
)
from cortex_core.fleet.events import Interest
from cortex_core.outcome import Outcome
from cortex_core.translate.translation import Translation
from cortex_gateway.admission import Admission
from cortex_gateway.answer import NodeFault, kind_of
from cortex_gateway.caller import caller_of
from cortex_gateway.dialects import DIALECTS, Route
from cortex_gateway.edge import Headers, Send, has_body, id_headers, request_id_of
from cortex_gateway.fleet import Fleet, Seat
from cortex_gateway.intake import decode_head, read_body, renamed
from cortex_gateway.relay import Relay
from cortex_gateway.reply import Reply
from cortex_gateway.upstream import NETWORK_ERRORS, Upstream, cause_of, fault_of
from cortex_gateway.vigil import ClientGone, Receive, Vigil

__all__ = ["PATHS", "Proxy"]

PATHS = frozenset(DIALECTS) | {path + "/" for path in DIALECTS}
"""What goes this way; see `dialects`."""

CLIENT_GONE_STATUS = 499  # nginx's number; never sent, only counted

# A longer body is translated on a thread: other streams would wait for milliseconds.
TRANSLATED_AT_ONCE_BYTES = 256 * 1024

# So is one that may go on from a response that was kept, of whatever length.
STANDING_FOR_MORE = (b'"previous_response_id"', b'"item_reference"')

# The client's headers that a neuron acts on. Nothing else is passed: an Authorization is meant for
# the gateway, and the rest is between the client and the gateway.
FORWARDED = {
    b"x-include-thinking": "X-Include-Thinking",
    b"x-cortex-priority": "X-Cortex-Priority",
}

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, 5.5

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
        routes: Mapping[str, Route] = DIALECTS,
    ) -> None:
        self.settings = settings
        self.max_body_bytes = settings.max_body_mb * 1024 * 1024
        self.fleet = fleet
        self.upstream = upstream
        self.admission = admission
        self.record = record
        self._routes = routes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        route = self._routes[scope["path"].rstrip("/")]
        await _Exchange(self, route, scope, receive, send).run()


class _Exchange:
    """One request from its head to its outcome."""

    __slots__ = (
        "_asked",
        "_began",
        "_client",
        "_device",
        "_headers",
        "_is_body_read",
        "_load_s",
        "_method",
        "_model",
        "_node",
        "_path",
        "_proxy",
        "_queued_s",
        "_receive",
        "_relay",
        "_reply",
        "_request_id",
        "_route",
        "_streamed",
        "_vigil",
    )

    _vigil: Vigil

    def __init__(
        self,
        proxy: Proxy,
        route: Route,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        self._began = time.perf_counter()
        self._proxy = proxy
        self._route = route
        self._method: str = scope["method"]
        self._path = route.path
        if route.has_query and scope["query_string"]:
            self._path += "?" + scope["query_string"].decode("latin-1")
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._client: str = scope["client"][0] if scope.get("client") else ""
        self._receive = receive
        self._request_id = request_id_of(self._headers)
        idle_timeout_s = proxy.settings.idle_timeout_s
        named = id_headers(scope, self._request_id)
        self._reply = Reply(send, route.dialect, named, self._began, idle_timeout_s)
        self._relay = Relay(self._reply, idle_timeout_s, is_generating=route.is_generating)
        self._model = ""
        self._node: str | None = None
        self._device: str | None = None
        self._streamed = False
        self._is_body_read = False
        self._asked = 0
        self._queued_s = 0.0
        self._load_s: float | None = None

    async def run(self) -> None:
        proxy = self._proxy
        try:
            if self._method != "POST":
                raise MethodNotAllowed("this route answers to POST")
            with proxy.admission, Vigil(self._receive, proxy.settings.idle_timeout_s) as vigil:
                self._vigil = self._reply.vigil = vigil
                proxy.admission.watch(vigil)
                try:
                    await self._serve()
                finally:
                    proxy.admission.unwatch(vigil)
        except ClientGone:
            self._relay.kind = "client_gone"
        except CortexError as error:
            await self._fail(error)
        except Exception:
            _log.exception('"a bug" request_id=%s', self._request_id.decode())
            await self._fail(InternalError("the gateway failed; its log says how"))
        finally:
            await self._reply.close()
            proxy.record(self._outcome())

    async def _fail(self, error: CortexError) -> None:
        was_forwarded = self._node is not None
        self._relay.code = error.code
        self._relay.kind = kind_of(error, error.status, was_forwarded=was_forwarded)
        is_unread = not self._is_body_read and has_body(self._headers)
        await self._reply.fail(error, self._node, self._receive if is_unread else None)

    def _outcome(self) -> Outcome:
        relay = self._relay
        return Outcome(
            relay.kind,
            self._request_id.decode(),
            self._model,
            self._node,
            CLIENT_GONE_STATUS if relay.kind == "client_gone" else self._reply.status,
            relay.code,
            self._streamed,
            relay.usage,
            self._reply.first_byte_s,
            time.perf_counter() - self._began,
            self._device,
            self._queued_s,
            self._load_s,
            max(self._asked - 1, 0),
            relay.cache,
        )

    # asking

    async def _serve(self) -> None:
        proxy = self._proxy
        vigil = self._vigil
        route = self._route
        body = await read_body(
            self._receive,
            self._headers,
            proxy.max_body_bytes,
            vigil,
            proxy.settings.idle_timeout_s,
        )
        self._is_body_read = True
        translation = None
        if route.translate is not None:
            translation = await _translated(route.translate, body)
            self._relay.translate_with(translation)
            body = translation.chat
        head = decode_head(body, has_prompt=route.is_generating)
        self._model = head.model
        self._streamed = head.stream if translation is None else translation.is_stream
        if self._streamed and route.is_generating:
            vigil.break_silence(time.perf_counter() - self._began, self._reply.keep_alive)
        request_id = self._request_id.decode()
        caller = caller_of(self._headers, self._client)
        headers = {
            "Content-Type": "application/json",
            "X-Request-Id": request_id,
            "X-Cortex-Caller": caller,
            **_forwarded(self._headers),
        }
        await self._ask(Interest(request_id, head.model, caller, head.prefix), body, headers)

    async def _ask(self, interest: Interest, body: bytes, headers: dict[str, str]) -> None:
        """Ask a replica; when it fails before an answer has begun, ask one more."""
        try:
            try:
                await self._ask_in_turn(interest, body, headers)
            except NodeFault as fault:
                if not fault.may_ask_again or self._asked > 1:
                    raise
                await self._ask_in_turn(interest, body, headers)
        except NodeFault as fault:
            # Nobody is left to ask: the neuron's own words, where it said any, else ours.
            if fault.answer is None or self._reply.status:
                raise fault.error from None
            await self._relay.send_whole(fault.answer)

    async def _ask_in_turn(self, interest: Interest, body: bytes, headers: dict[str, str]) -> None:
        """Ask those that the fleet names, until one has answered. Raises the last one's NodeFault.
        Waiting for a seat has the fleet's limits and not a node's."""
        self._vigil.expect(math.inf)
        seat = self._proxy.fleet.seat(interest)
        try:
            async with seat:
                while True:
                    try:
                        return await self._forward(seat, interest.model, body, headers)
                    except NodeFault as fault:
                        self._relay.start_over()
                        self._vigil.expect(math.inf)
                        if not await self._has_other(seat, fault):
                            raise
        finally:
            self._queued_s += seat.queued_s
            if seat.load_s is not None:
                self._load_s = seat.load_s

    async def _has_other(self, seat: Seat, fault: NodeFault) -> bool:
        """Whether another replica may be asked now. Raises the fleet's refusal where that says more
        than the fault does: a node that has lost a model does not speak for the fleet."""
        failed = seat.replica
        try:
            other = await seat.failed(fault.error)
        except CortexError:
            if isinstance(fault.error, NotFound):
                raise
            return False
        _log.info(
            '"asking again" request_id=%s from=%s to=%s cause="%s"',
            self._request_id.decode(),
            failed.node,
            other.node,
            fault.error.message,
        )
        return True

    async def _forward(
        self, seat: Seat, asked_for: str, body: bytes, headers: dict[str, str]
    ) -> None:
        """Ask one replica and pass its answer on. Raises NodeFault only before that has begun."""
        replica = seat.replica
        node = self._node = replica.node
        self._device = replica.device
        self._asked += 1
        if replica.model != asked_for:  # an alias, of which neurons know nothing
            self._model = replica.model
            body = renamed(body, replica.model)
        first_byte_s = self._proxy.settings.first_byte_timeout_s
        self._vigil.stalled_message = f"the node {node} sent nothing for {first_byte_s:g} s"
        self._vigil.expect(first_byte_s)
        neuron = self._proxy.upstream.neurons.get(node)
        if neuron is None:  # it was taken out of the configuration a moment ago
            raise NodeFault(NodeUnavailable(f"the node {node} is not configured any more"))
        response = None
        loss = _Loss(self._reply)
        seat.on_lost = loss.found
        self._relay.on_begin = seat.answering
        try:
            response = await neuron.post(self._path, body, headers)
            await self._relay.pass_on(node, response)
            code = self._relay.code
            if code is not None:
                seat.fault = Fault(code, f"the node {node} ended its answer in the error {code}")
        except NETWORK_ERRORS as error:
            if self._reply.is_answering:
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
        except asyncio.CancelledError:
            if not loss.is_ours():
                if isinstance(self._vigil.reason, Stalled):
                    seat.fault = self._vigil.reason.fault
                raise
            raise NodeFault(
                NodeUnavailable(f"the node {node} was lost before it answered: {loss.cause}")
            ) from None
        finally:
            seat.on_lost = None
            self._relay.on_begin = None
            if response is not None:
                response.close()  # a connection whose answer was read to its end is kept


class _Loss:
    """The end of a wait for a node that is gone. Nothing comes over a connection into a black hole,
    not even its end, so only who watches the node can tell."""

    __slots__ = ("_reply", "_task", "cause")

    def __init__(self, reply: Reply) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._reply = reply
        self._task = task
        self.cause: str | None = None

    def found(self, cause: str) -> None:
        """Once an answer has begun, how long it may be silent is the vigil's affair."""
        if self.cause is None and not self._reply.is_answering:
            self.cause = cause
            self._task.cancel()

    def is_ours(self) -> bool:
        """Whether the cancellation that came was for this and nothing else."""
        return self.cause is not None and self._task.uncancel() == 0


def _forwarded(headers: Headers) -> dict[str, str]:
    """Those of FORWARDED. Raises InvalidRequest that names one which HTTP has no place for."""
    found = {}
    for name, value in headers:
        if name in FORWARDED:
            if _CONTROL.search(value):
                raise InvalidRequest(
                    f"{name.decode()}: has a control character: {value[:100].decode('latin-1')!r}",
                    param=name.decode(),
                )
            found[FORWARDED[name]] = value.decode("latin-1")
    return found


async def _translated(translate: Callable[[bytes], Translation], body: bytes) -> Translation:
    if len(body) > TRANSLATED_AT_ONCE_BYTES or any(name in body for name in STANDING_FOR_MORE):
        return await asyncio.to_thread(translate, body)
    return translate(body)

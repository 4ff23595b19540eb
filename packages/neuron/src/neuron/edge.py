"""The outermost ASGI layer: request ids, the bearer token, body limits, and the last resort.

Whatever the application inside does, a client gets an answer with an x-request-id and, for an
error, the envelope; and a request body nobody wanted never wedges its connection.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cortex_core.errors import CortexError, Forbidden, InternalError, InvalidApiKey, RequestTooLarge
from neuron import logs
from neuron.answers import error_answer

__all__ = ["Edge"]

_log = logs.get(__name__)
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_OPEN_PATHS = frozenset({"/health", "/version"})
_SAFE = frozenset({"GET", "HEAD"})
_LINGER_S = 1.0


class Edge:
    def __init__(self, app: ASGIApp, *, token: str | None, max_body_bytes: int) -> None:
        self._app = app
        self._token = token
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given
        if not _SANE_ID.fullmatch(given):
            request_id = uuid4().hex
            # Inside, the header is always there and always sane.
            MutableHeaders(scope=scope)["x-request-id"] = request_id
        exchange = _Exchange(receive, send, request_id, self._max_body_bytes)
        try:
            self._check_token(scope["path"], headers)
            self._check_origin(scope["method"], scope["path"], headers)
            exchange.check_length(headers.get("content-length", ""))
            await self._app(scope, exchange.receive, exchange.send)
        except CortexError as error:
            if exchange.is_answered:
                raise
            await error_answer(error)(scope, exchange.receive, exchange.send)
        except Exception:
            _log.exception("unforeseen", request=request_id, path=scope["path"])
            if exchange.is_complete:
                return
            if exchange.is_answered:
                raise  # the server cuts the connection: never a clean-looking end
            error = InternalError("an internal error; the neuron's log has the cause")
            await error_answer(error)(scope, exchange.receive, exchange.send)

    def _check_token(self, path: str, headers: Headers) -> None:
        if self._token is None or path in _OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise InvalidApiKey("this neuron wants a token: Authorization: Bearer …")
        if not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise InvalidApiKey("the token is not the one of this neuron")

    def _check_origin(self, method: str, path: str, headers: Headers) -> None:
        """Any page can have its reader's browser send an order here, and browsers say which page
        it was; a token is what no page has."""
        origin = headers.get("origin")
        is_order = method not in _SAFE and not path.startswith("/v1/")
        if self._token is None and origin is not None and is_order:
            raise Forbidden(
                f"a web page ({origin!r}) may not give this neuron orders: it has no token "
                "(token_file)"
            )


class _Exchange:
    """One request's receive and send, watched."""

    def __init__(self, receive: Receive, send: Send, request_id: str, max_body_bytes: int) -> None:
        self.is_answered = False
        self.is_complete = False
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._max_body_bytes = max_body_bytes
        self._body_bytes = 0
        self._is_body_read = False

    def check_length(self, given: str) -> None:
        """Refuse a body that says itself that it is too large, before reading any of it."""
        if given.isascii() and given.isdigit() and int(given) > self._max_body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request":
            self._is_body_read = True
            return message
        self._body_bytes += len(message.get("body", b""))
        self._is_body_read = not message.get("more_body", False)
        if self._body_bytes > self._max_body_bytes:
            raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_answered = True
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and not self._is_body_read:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        if not is_last:
            await self._send(message)
            return
        if self._is_body_read:
            await self._send(message)
            self.is_complete = True
            return
        # hypercorn blocks its own end of a request on a queue that only we empty; a body still
        # coming in would fill that queue and wedge the connection for good.
        sink = asyncio.create_task(self._discard())
        try:
            await self._send(message)
            self.is_complete = True
        finally:
            sink.cancel()

    async def _linger(self) -> None:
        """Swallow the rest of the body for a moment: a client that is still sending when the
        connection is cut would see a reset instead of our answer."""
        try:
            async with asyncio.timeout(_LINGER_S):
                await self._discard()
        except TimeoutError:
            pass

    async def _discard(self) -> None:
        while not self._is_body_read:
            message = await self._receive()
            is_over = message["type"] != "http.request" or not message.get("more_body", False)
            self._is_body_read = is_over

    def _too_large(self) -> RequestTooLarge:
        most = self._max_body_bytes // (1024 * 1024)
        return RequestTooLarge(f"the request body exceeds {most} MiB (max_body_mb)")

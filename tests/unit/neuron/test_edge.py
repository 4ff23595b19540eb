"""The outermost layer, driven by ASGI messages."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from cortex_core.errors import ModelLoading
from neuron.answers import EXCEPTION_HANDLERS
from neuron.edge import Edge

Handler = Callable[[Request], Awaitable[Response]]


def edge(handler: Handler, token: str | None = None) -> Edge:
    routes = [Route(path, handler, methods=["GET", "POST"]) for path in ("/x", "/v1/x")]
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
    return Edge(app, token=token, max_body_bytes=1 << 20)


class Exchange:
    """One request with a body in pieces; collects what is sent."""

    def __init__(
        self,
        body: list[bytes] | None = None,
        headers: dict[str, str] | None = None,
        path: str = "/x",
    ) -> None:
        self.scope = {
            "type": "http",
            "method": "POST" if body else "GET",
            "path": path,
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
        }
        self.body = body or [b""]
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        if not self.body:
            return {"type": "http.disconnect"}
        piece = self.body.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self.body)}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def through(self, app: Edge) -> Exchange:
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(b"".join(m.get("body", b"") for m in self.sent[1:]))["error"]


async def show_id(request: Request) -> Response:
    return PlainTextResponse(request.headers["x-request-id"])


async def test_the_application_sees_the_id_the_client_will_see():
    exchange = await Exchange().through(edge(show_id))
    assert exchange.sent[1]["body"].decode() == exchange.headers["x-request-id"]
    exchange = await Exchange(headers={"x-request-id": "bad id"}).through(edge(show_id))
    assert exchange.sent[1]["body"].decode() == exchange.headers["x-request-id"] != "bad id"


async def test_a_typed_error_is_rendered_with_its_retry_after():
    async def handler(request: Request) -> Response:
        raise ModelLoading("it is loading")

    exchange = await Exchange().through(edge(handler))
    assert exchange.status == 503
    assert exchange.headers["retry-after"] == "5"
    assert exchange.error["code"] == "model_loading"


async def test_a_bug_of_ours_is_a_500_that_tells_nothing_and_is_logged(
    caplog: pytest.LogCaptureFixture,
):
    async def handler(request: Request) -> Response:
        raise KeyError("a secret")

    exchange = await Exchange(headers={"x-request-id": "r1"}).through(edge(handler))
    assert exchange.status == 500
    assert exchange.error["code"] == "internal_error"
    assert "secret" not in str(exchange.sent)
    assert exchange.headers["x-request-id"] == "r1"
    assert "a secret" in caplog.text


async def test_a_bug_in_the_middle_of_a_stream_is_no_clean_end():
    async def body():
        yield b"begun"
        raise KeyError("a secret")

    async def handler(request: Request) -> Response:
        return StreamingResponse(body())

    exchange = Exchange()
    with pytest.raises(BaseException):  # noqa: B017, PT011 — the server then cuts the connection
        await exchange.through(edge(handler))
    assert all(message.get("more_body", True) for message in exchange.sent)


async def test_what_is_left_of_a_body_is_swallowed_before_the_answer_ends():
    async def handler(request: Request) -> Response:
        return PlainTextResponse("no, thanks", 404)

    exchange = await Exchange([b"x" * 1000] * 50).through(edge(handler))
    assert exchange.body == []
    assert exchange.sent[1]["body"] == b"no, thanks"
    assert not exchange.sent[-1].get("more_body", False)


async def test_a_wrong_token_is_refused_before_the_application_runs():
    async def handler(request: Request) -> Response:
        raise AssertionError("it ran")

    app = edge(handler, token="secret")
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
        assert (await Exchange(headers=header).through(app)).status == 401


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "Bearer  secret "])
async def test_the_right_token_passes(header: str):
    exchange = await Exchange(headers={"authorization": header}).through(edge(show_id, "secret"))
    assert exchange.status == 200


async def test_a_web_page_gives_no_orders_where_there_is_no_token():
    page = {"origin": "https://example.org"}
    answer = await Exchange([b"{}"], page).through(edge(show_id))
    assert answer.status == 403
    assert b"https://example.org" in answer.sent[1]["body"]
    assert (await Exchange([b"{}"]).through(edge(show_id))).status == 200
    assert (await Exchange(None, page).through(edge(show_id))).status == 200
    assert (await Exchange([b"{}"], page, "/v1/x").through(edge(show_id))).status == 200
    token = page | {"authorization": "Bearer secret"}
    assert (await Exchange([b"{}"], token).through(edge(show_id, "secret"))).status == 200

"""What browsers are told about other origins' pages."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from cortex_gateway.cors import Cors

PAGE = "https://chat.example"
Headers = dict[str, str]


async def asked(
    origins: list[str], method: str = "POST", **headers: str
) -> tuple[int, Headers, bytes]:
    """What an app that answers "there" says behind Cors; an underscore is a hyphen."""
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"there"})

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("nobody reads the body")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await Cors(app, origins)({"type": "http", "method": method, "headers": pairs}, receive, send)
    start, body = sent
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], told, body["body"]


async def test_a_page_of_a_configured_origin_may_read_the_answer() -> None:
    status, headers, body = await asked(["https://other", PAGE], origin=PAGE)
    assert (status, body) == (200, b"there")
    assert headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in headers["access-control-expose-headers"]
    assert (headers["vary"], headers["a"]) == ("origin", "b")


async def test_a_star_stands_for_every_origin() -> None:
    _, headers, _ = await asked(["*"], origin="null")
    assert headers["access-control-allow-origin"] == "null"


async def test_another_origins_page_is_answered_and_not_let_read() -> None:
    status, headers, body = await asked([PAGE], origin="https://evil.example")
    assert (status, body) == (200, b"there")
    assert headers == {"a": "b", "vary": "origin"}


async def test_what_is_no_page_is_none_of_its_business() -> None:
    _, headers, _ = await asked([PAGE])
    assert "access-control-allow-origin" not in headers


async def test_a_preflight_is_answered_and_goes_no_further() -> None:
    status, headers, body = await asked(
        [PAGE],
        "OPTIONS",
        origin=PAGE,
        access_control_request_method="POST",
        access_control_request_headers="authorization, x-stainless-os",
    )
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == PAGE
    assert headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "POST" in headers["access-control-allow-methods"]


async def test_a_preflight_of_another_origin_is_granted_nothing() -> None:
    status, headers, _ = await asked(
        [PAGE], "OPTIONS", origin="https://evil.example", access_control_request_method="POST"
    )
    assert status == 204
    assert "access-control-allow-origin" not in headers


async def test_options_that_are_no_preflight_go_on() -> None:
    status, _, body = await asked([PAGE], "OPTIONS", origin=PAGE)
    assert (status, body) == (200, b"there")

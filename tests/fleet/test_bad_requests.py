"""No fault of a client ends in a 500, and every refusal names its culprit in one shape."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.fleet.conftest import Reply, Rig

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS: dict[str, Any] = {"max_body_mb": 1}
CHAT = "/v1/chat/completions"


def checked(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """The error, having the one shape that every error has."""
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    body = json.loads(reply.body)
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "code", "param"]
    assert body["error"]["code"] == code
    return body["error"]


@pytest.mark.parametrize(
    ("body", "code", "param", "words"),
    [
        (b"", "invalid_json", None, "empty"),
        (b"  \n", "invalid_json", None, "empty"),
        (b"{", "invalid_json", None, "not valid JSON"),
        (b'{"model":"m"} x', "invalid_json", None, "not valid JSON"),
        (b'{"model":"\xff"}', "invalid_json", None, "not valid JSON"),
        (b"\x1f\x8b\x08\x00", "invalid_json", None, "not valid JSON"),
        (b'{"a":' * 5000, "invalid_json", None, "not valid JSON|nested too deeply"),
        (b"[1]", "invalid_request", None, "an array"),
        (b"null", "invalid_request", None, "null"),
        (b'"m"', "invalid_request", None, "a string"),
        (b"{}", "invalid_request", "model", "missing"),
        (b'{"model":null}', "invalid_request", "model", "missing"),
        (b'{"model":""}', "invalid_request", "model", "empty"),
        (b'{"model":7}', "invalid_request", "model", "expected a string, got 7"),
        (b'{"model":["m"]}', "invalid_request", "model", 'expected a string, got ["m"]'),
        (b'{"model":"m","stream":"yes"}', "invalid_request", "stream", 'a boolean, got "yes"'),
        (b'{"model":"m","stream":1}', "invalid_request", "stream", "a boolean, got 1"),
    ],
)
async def test_a_bad_body_is_named(
    rig: Rig, body: bytes, code: str, param: str | None, words: str
) -> None:
    error = checked(await rig.ask("POST", CHAT, body), 400, code)
    assert error["param"] == param
    assert any(word in error["message"] for word in words.split("|"))
    assert error["type"] == "invalid_request_error"


async def test_a_null_stream_counts_as_absent(rig: Rig) -> None:
    assert (await rig.ask("POST", CHAT, b'{"model":"m","stream":null}')).status == 200


async def test_a_body_at_the_limit_is_taken(rig: Rig) -> None:
    body = b'{"model":"m"}'
    assert (await rig.ask("POST", CHAT, body.ljust(1024 * 1024))).status == 200


async def test_a_body_beyond_the_limit_is_refused(rig: Rig) -> None:
    reply = await rig.ask("POST", CHAT, b"x" * (1024 * 1024 + 1))
    error = checked(reply, 413, "request_too_large")
    assert "1 MiB (gateway.max_body_mb)" in error["message"]


async def test_an_announced_giant_is_refused_unread(rig: Rig) -> None:
    reader, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1)
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head.lower()
    writer.close()


async def test_a_giant_without_a_length_is_refused_and_its_connection_ends(rig: Rig) -> None:
    """The refusal arrives although the client goes on sending."""
    reader, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())

    async def keep_sending() -> None:
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    sending = asyncio.create_task(keep_sending())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 413")
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(sending, 10)
    writer.close()


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_an_encoded_body_reaches_the_neuron_as_what_it_was(
    rig: Rig, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    body = b'{"model": "only/a", "x": "%s"}' % (b"y" * 5000)
    headers = {"content-encoding": encoding}
    reply = await rig.ask("POST", CHAT, pack(body), headers=headers)
    assert reply.status == 200
    (call,) = rig.a.calls
    assert call.body == body
    assert "content-encoding" not in call.headers


async def test_an_encoding_nobody_here_knows_is_named(rig: Rig) -> None:
    """And so are those that are known (RFC 9110, 12.5.3)."""
    for path in (CHAT, "/admin/models/load"):
        reply = await rig.ask("POST", path, b"x", headers={"content-encoding": "br"})
        error = checked(reply, 415, "unsupported_encoding")
        assert "content-encoding: 'br' is not supported" in error["message"]
        assert reply.headers["accept-encoding"] == "gzip, deflate"


async def test_a_body_that_is_not_what_its_encoding_says_is_told_so(rig: Rig) -> None:
    reply = await rig.ask("POST", CHAT, b'{"model":"m"}', headers={"content-encoding": "gzip"})
    error = checked(reply, 400, "invalid_request")
    assert "not valid gzip" in error["message"]


async def test_a_body_is_measured_by_what_it_becomes(rig: Rig) -> None:
    bomb = gzip.compress(bytes(50 * 1024 * 1024))
    assert len(bomb) < 1024 * 1024
    reply = await rig.ask("POST", CHAT, bomb, headers={"content-encoding": "gzip"})
    checked(reply, 413, "request_too_large")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v1/chat/completions/x", "/nope", "/admin"]
)
async def test_an_unknown_route_is_a_404(rig: Rig, path: str) -> None:
    for method in ("GET", "POST"):
        error = checked(await rig.ask(method, path), 404, "not_found")
        assert f"{method} {path}" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/v1/models/only/a", "GET"),
        ("POST", "/health", "GET"),
        ("POST", "/version", "GET"),
        ("GET", "/admin/models/load", "POST"),
        ("POST", "/admin/fleet", "GET"),
    ],
)
async def test_a_wrong_method_is_a_405_naming_the_right_one(
    rig: Rig, method: str, path: str, allowed: str
) -> None:
    reply = await rig.ask(method, path)
    checked(reply, 405, "method_not_allowed")
    assert allowed in reply.headers["allow"]


async def test_a_large_body_for_an_unknown_route_leaves_no_connection_behind(rig: Rig) -> None:
    reply = await rig.ask("POST", "/v1/unknown", b"x" * 5_000_000)
    checked(reply, 404, "not_found")
    assert (await rig.ask("GET", "/version")).status == 200


async def test_every_good_answer_has_a_request_id(rig: Rig) -> None:
    for path in ("/v1/models", "/health", "/version", "/admin/fleet"):
        reply = await rig.ask("GET", path, headers={"x-request-id": "mine"})
        assert (reply.status, reply.headers["x-request-id"]) == (200, "mine")


@pytest.mark.parametrize("name", ["X-Include-Thinking", "X-Cortex-Priority"])
async def test_a_control_character_in_a_header_that_goes_to_the_neuron_is_named(
    rig: Rig, name: str
) -> None:
    reader, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    body = b'{"model":"m"}'
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", f"{name}: 1\x01", f"Content-Length: {len(body)}"]
    writer.write("\r\n".join([*lines, "Connection: close"]).encode() + b"\r\n\r\n" + body)
    head, _, answer = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400")
    error = json.loads(answer)["error"]
    assert (error["code"], error["param"]) == ("invalid_request", name.lower())
    assert "a control character: '1\\x01'" in error["message"]
    assert not rig.a.calls
    assert not rig.b.calls


async def test_any_content_type_will_do(rig: Rig) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=x"):
        headers = {"content-type": kind}
        assert (await rig.ask("POST", CHAT, b'{"model":"m"}', headers=headers)).status == 200


async def test_none_of_this_was_logged_as_a_bug(rig: Rig) -> None:
    assert "Traceback" not in rig.daemon.log
    assert "a bug" not in rig.daemon.log

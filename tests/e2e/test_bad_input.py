"""Whatever a client sends, the answer is a typed error that names the culprit."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.client import CHAT, TINY, ask, fetch, user
from tests.e2e.conftest import Stack

CASES: list[tuple[bytes | dict[str, Any], int, str, str | None]] = [
    (b"", 400, "invalid_json", None),
    (b"{", 400, "invalid_json", None),
    (b"[]", 400, "invalid_request", None),
    ({}, 400, "invalid_request", "model"),
    ({"messages": user("x")}, 400, "invalid_request", "model"),
    ({"model": 3, "messages": user("x")}, 400, "invalid_request", "model"),
    ({"model": "", "messages": user("x")}, 400, "invalid_request", "model"),
    ({"model": "nope", "messages": user("x")}, 404, "model_not_found", "model"),
    ({"model": TINY}, 400, "invalid_request", "messages"),
    ({"model": TINY, "messages": []}, 400, "invalid_request", "messages"),
    ({"model": TINY, "messages": "x"}, 400, "invalid_request", "messages"),
    (
        {"model": TINY, "messages": [{"role": "x", "content": "x"}]},
        400,
        "invalid_request",
        "messages[0].role",
    ),
    ({"model": TINY, "messages": user("x"), "stream": "yes"}, 400, "invalid_request", "stream"),
    (
        {"model": TINY, "messages": user("x"), "temperature": "hot"},
        400,
        "invalid_request",
        "temperature",
    ),
    ({"model": TINY, "messages": user("x"), "top_p": 7}, 400, "invalid_request", "top_p"),
    (
        {"model": TINY, "messages": user("x"), "temprature": 1},
        400,
        "unsupported_parameter",
        "temprature",
    ),
    ({"model": TINY, "messages": user("x"), "n": 0}, 400, "invalid_request", "n"),
]


@pytest.mark.parametrize("at", ["gateway", "neuron"])
@pytest.mark.parametrize(("body", "status", "code", "param"), CASES, ids=lambda x: str(x)[:50])
async def test_a_bad_request_is_refused_by_name(
    stack: Stack, at: str, body: Any, status: int, code: str, param: str | None
):
    answer = await fetch("POST", getattr(stack, at).url + CHAT, body)
    assert answer.status == status
    error = answer.body["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert answer.headers["x-request-id"]
    if param:
        assert param in error["message"]


async def test_a_prompt_longer_than_the_context_says_both_lengths(stack: Stack):
    answer = await ask(stack.url, "word " * 40_000)
    assert answer.status == 400
    assert answer.body["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 8192 tokens" in answer.body["error"]["message"]


@pytest.mark.parametrize("at", ["gateway", "neuron"])
async def test_unknown_routes_and_methods_have_the_same_envelope(stack: Stack, at: str):
    url = getattr(stack, at).url
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
    ):
        answer = await fetch(method, url + path)
        assert answer.status == status, (method, path)
        assert answer.body["error"]["code"] == code


async def test_any_content_type_is_read_as_json(stack: Stack):
    headers = {"content-type": "text/plain"}
    body = b'{"model": "cortex/tiny", "messages": [{"role": "user", "content": "ping"}]}'
    assert (await fetch("POST", stack.url + CHAT, body, headers=headers)).status == 200


async def test_any_text_goes_in_and_comes_out_as_text(stack: Stack):
    for text in ("\x00", "\ud83d\ude00", "🏳️‍🌈" * 50, "\u202e", "<|im_end|>", "{{ 7 * 7 }}"):
        answer = await ask(stack.url, text, max_tokens=8)
        assert answer.status == 200, text

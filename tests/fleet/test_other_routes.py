"""Every route that a model answers takes the one way through the gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fleet.conftest import Reply, Rig
from tests.fleet.scripted_neuron import Call

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": ["hi"]},
    "/v1/rerank": {"query": "q", "documents": ["d"]},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [1]},
    "/v1/chat/render": {"messages": [{"role": "user", "content": "hi"}]},
}
SETTINGS: dict[str, Any] = {"cors_origins": ["https://chat.example"]}
USAGE = {"prompt_tokens": 7, "total_tokens": 7}
LISTED = json.dumps({"data": [{"index": 0, "embedding": [0.25]}], "usage": USAGE}).encode()


async def _ask(rig: Rig, path: str, model: str = "m", **more: Any) -> Reply:
    return await rig.ask("POST", path, {"model": model} | BODIES[path] | more)


@pytest.mark.parametrize("path", BODIES)
async def test_body_and_answer_pass_byte_for_byte_to_the_same_path(rig: Rig, path: str):
    async def script(call: Call) -> None:
        await call.answer(
            b'{ "odd":  "spacing", "choices": [1] }', headers={"X-Cortex-Ignored": "user"}
        )

    rig.a.script = script
    sent = json.dumps({"model": "only/a"} | BODIES[path], indent=3).encode()
    reply = await rig.ask("POST", path, sent)
    assert (reply.status, reply.body) == (200, b'{ "odd":  "spacing", "choices": [1] }')
    assert reply.headers["x-cortex-node"] == "a"
    assert reply.headers["x-cortex-ignored"] == "user"
    (call,) = rig.a.calls
    assert (call.path, call.body) == (path, sent)


@pytest.mark.parametrize("path", BODIES)
async def test_a_node_that_fails_costs_the_client_nothing(rig: Rig, path: str):
    answer = b'{"choices": [1]}' if path == "/v1/completions" else LISTED

    async def crash(call: Call) -> None:
        call.reset()

    async def script(call: Call) -> None:
        await call.answer(answer)

    rig.a.script, rig.b.script = crash, script
    replies = [await _ask(rig, path) for _ in range(4)]
    assert [reply.body for reply in replies] == [answer] * 4
    assert {reply.headers["x-cortex-node"] for reply in replies} == {"b"}


@pytest.mark.parametrize("path", BODIES)
async def test_a_refusal_of_the_neuron_is_the_clients_answer(rig: Rig, path: str):
    error = {"error": {"message": "no", "type": "t", "code": "invalid_request", "param": "model"}}

    async def script(call: Call) -> None:
        await call.answer(error, status=400)

    rig.a.script = script
    reply = await _ask(rig, path, "only/a")
    assert reply.status == 400
    assert json.loads(reply.body) == error


@pytest.mark.parametrize("path", BODIES)
async def test_other_methods_and_models_are_refused(rig: Rig, path: str):
    reply = await rig.ask("GET", path)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    reply = await _ask(rig, path, "nobody/has-this")
    assert reply.status == 404
    assert json.loads(reply.body)["error"]["code"] == "model_not_found"


async def test_a_completion_stream_that_breaks_off_ends_in_an_error_event(rig: Rig):
    event = b'data: {"choices":[{"index":0,"text":"hel"}]}\n\n'

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(event)
        call.reset()

    rig.a.script = script
    reply = await _ask(rig, "/v1/completions", "only/a", stream=True)
    assert reply.status == 200
    assert reply.body.startswith(event)
    assert json.loads(reply.body[len(event) :].removeprefix(b"data: "))["error"]["code"] == (
        "upstream_failed"
    )
    assert b"[DONE]" not in reply.body


async def test_tokens_of_embeddings_are_counted(rig: Rig):
    async def script(call: Call) -> None:
        await call.answer(LISTED)

    rig.a.script = script
    sample = 'cortex_tokens_total{kind="prompt",model="only/a",node="a"}'
    before = (await rig.metrics()).get(sample, 0)
    await _ask(rig, "/v1/embeddings", "only/a")
    assert (await rig.metrics())[sample] - before == 7


async def test_what_is_wanted_of_a_rendering_reaches_the_neuron(rig: Rig):
    async def script(call: Call) -> None:
        await call.answer(b'{"count":3}')

    rig.a.script = script
    reply = await rig.ask("POST", "/v1/chat/render?tokens=false&x=%20", {"model": "only/a"})
    assert reply.body == b'{"count":3}'
    assert rig.a.calls[0].path == "/v1/chat/render?tokens=false&x=%20"


async def test_other_queries_stay_at_the_gateway(rig: Rig):
    await rig.ask("POST", "/v1/chat/completions?beta=true", {"model": "only/a"})
    assert rig.a.calls[0].path == "/v1/chat/completions"


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1/embeddings/", "/tokenize/"])
async def test_a_slash_at_the_end_of_a_path_makes_no_difference(rig: Rig, path: str):
    reply = await rig.ask("POST", path, {"model": "only/a"})
    assert reply.status == 200
    assert rig.a.calls[0].path == path.rstrip("/")


@pytest.mark.parametrize("path", ["/health", "/version", "/v1/models", "/v1/models/only/a"])
async def test_questions_may_end_in_a_slash_and_may_want_no_more_than_a_head(rig: Rig, path: str):
    reply = await rig.ask("GET", path)
    assert (await rig.ask("GET", path + "/")).body == reply.body
    head = await rig.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(reply.body))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/nope"])
async def test_a_page_of_a_configured_origin_may_read_any_answer(rig: Rig, path: str):
    page = "https://chat.example"
    reply = await rig.ask("POST", path, {"model": "m"}, headers={"origin": page})
    assert reply.headers["access-control-allow-origin"] == page
    asked = {"origin": page, "access-control-request-method": "POST"}
    reply = await rig.ask("OPTIONS", path, headers=asked)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (204, page)

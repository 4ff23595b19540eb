"""The dialects that ship, through a real server: their paths, headers and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortex_core.wire import sse
from tests.fleet.conftest import Rig
from tests.fleet.scripted_neuron import Call, chunks_of, completion

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGE: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


async def test_a_message_is_answered_whole_and_as_a_stream(rig: Rig) -> None:
    body = {"model": "only/a"} | MESSAGE
    headers = {"x-api-key": "k", "anthropic-version": "2023-06-01", "anthropic-beta": "made-up"}
    reply = await rig.ask("POST", "/v1/messages/", body, headers=headers)
    answer = json.loads(reply.body)
    assert (reply.status, answer["type"]) == (200, "message")
    assert answer["content"] == [{"type": "text", "text": "hello from a"}]
    assert reply.headers["request-id"] == reply.headers["x-request-id"]
    assert rig.a.calls[0].headers["x-cortex-caller"].startswith("key-")
    rig.a.script = lambda call: call.stream(*chunks_of("hel", "lo", usage=True))
    reply = await rig.ask("POST", "/v1/messages", body | {"stream": True}, headers=headers)
    kinds = [event.event for event in sse.Parser().feed(reply.body)]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


VERSION = {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/models", VERSION, 200),
        ("GET", "/v1/models/only/a", VERSION, 200),
        ("GET", "/v1/models/nobody/has-this", VERSION, 404),
        ("GET", "/v1/files", VERSION, 404),
        ("POST", "/v1/models", VERSION, 405),
        ("OPTIONS", "/v1/models", VERSION, 405),
        ("GET", "/admin/fleet", VERSION, 200),
        ("POST", "/v1/chat/completions", VERSION, 400),
        ("POST", "/v1/messages", {}, 400),
        ("GET", "/v1/messages", {}, 405),
        ("OPTIONS", "/v1/messages/", {}, 405),
        ("POST", "/v1/messages/count_tokens", {}, 400),
        ("POST", "/v1/messages/batches", {}, 404),
    ],
)
async def test_anthropics_clients_find_the_requests_id_under_their_own_name(
    rig: Rig, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """On the vendor's own routes, whoever asks; and wherever its clients do."""
    reply = await rig.ask(method, path, headers=headers | {"x-request-id": "mine"})
    assert reply.status == status
    assert reply.headers["request-id"] == reply.headers["x-request-id"] == "mine"


async def test_a_body_that_nobody_reads_is_refused_by_its_request_id(rig: Rig) -> None:
    reply = await rig.ask("POST", "/v1/messages/batches", b"x" * 5_000_000)
    assert (reply.status, json.loads(reply.body)["type"]) == (404, "error")
    assert reply.headers["request-id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/messages-of-mine", "/v1/chat/completions"])
async def test_others_find_it_under_the_usual_name_alone(rig: Rig, path: str) -> None:
    reply = await rig.ask("GET", path)
    assert "request-id" not in reply.headers
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "more", "told"),
    [
        ("/v1/messages", MESSAGE, ["thinking.budget_tokens", "output_config.effort"]),
        (
            "/v1/messages",
            MESSAGE | {"thinking": {"type": "disabled"}},
            ["thinking", "thinking.budget_tokens", "output_config.effort"],
        ),
        ("/v1/responses", {"input": "hi"}, ["reasoning.effort"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_node_has_no_use_for_is_told_by_the_clients_own_names(
    rig: Rig, path: str, more: dict[str, Any], told: list[str], stream: bool
) -> None:
    said = {"/v1/messages": "enable_thinking, max_thinking_tokens, reasoning_effort"}
    headers = {"X-Cortex-Ignored": said.get(path, "reasoning_effort")}

    async def script(call: Call) -> None:
        if not stream:
            await call.answer(completion("hello"), headers=headers)
            return
        await call.start_stream(headers)
        for chunk in chunks_of("hello", usage=True):
            await call.chunk(chunk)
        await call.end()

    rig.a.script = script
    reply = await rig.ask("POST", path, {"model": "only/a", "stream": stream} | more)
    assert reply.headers["x-cortex-ignored"].split(", ") == told


async def test_a_list_of_models_is_cut_into_pages_for_anthropics_clients_alone(rig: Rig) -> None:
    query = "?limit=1&after_id=m&workspace_id=w"
    reply = await rig.ask("GET", f"/v1/models{query}", headers=VERSION)
    page = json.loads(reply.body)
    assert [model["id"] for model in page["data"]] == ["only/a"]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, "only/a", "only/a")
    assert reply.headers["x-cortex-ignored"] == "workspace_id"
    reply = await rig.ask("GET", f"/v1/models{query}")
    assert [model["id"] for model in json.loads(reply.body)["data"]] == ["m", "only/a", "only/b"]
    assert reply.headers["x-cortex-ignored"] == "after_id, limit, workspace_id"
    reply = await rig.ask("GET", "/v1/models?limit=0", headers=VERSION)
    assert (reply.status, json.loads(reply.body)["type"]) == (400, "error")


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"model": "nobody/has-this"}, 404, "not_found_error"),
    ],
)
async def test_a_refused_message_hears_it_as_its_clients_expect(
    rig: Rig, change: dict[str, Any], status: int, kind: str
) -> None:
    body = {"model": "only/a"} | MESSAGE | change
    reply = await rig.ask("POST", "/v1/messages", body)
    error = json.loads(reply.body)
    assert (reply.status, error["type"], error["error"]["type"]) == (status, "error", kind)


async def test_a_message_that_breaks_off_ends_in_an_error_event(rig: Rig) -> None:
    async def break_off(call: Call) -> None:
        await call.start_stream()
        await call.chunk(chunks_of("hel")[0])
        call.reset()

    rig.a.script = break_off
    body = {"model": "only/a", "stream": True} | MESSAGE
    reply = await rig.ask("POST", "/v1/messages", body)
    *_, last = sse.Parser().feed(reply.body)
    assert last.event == "error"
    assert json.loads(last.data)["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("path", "more", "kinds"),
    [
        ("/v1/messages", MESSAGE, ["error"]),
        ("/v1/responses", {"input": "hi"}, ["error", "response.failed"]),
    ],
)
@pytest.mark.parametrize("blank", [b"\n\n", b""])
async def test_a_chat_that_is_done_and_never_finished_ends_in_an_error_event(
    rig: Rig, path: str, more: dict[str, Any], kinds: list[str], blank: bytes
) -> None:
    half = b'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n'
    rig.a.script = lambda call: call.stream(half, b"data: [DONE]" + blank)
    body = {"model": "only/a", "stream": True} | more
    reply = await rig.ask("POST", path, body, headers={"x-request-id": f"half-{len(blank)}"})
    told = [event.event for event in sse.Parser().feed(reply.body)]
    assert told[-len(kinds) :] == kinds
    assert told.count("error") == 1
    assert b'"half"' in reply.body
    rig.daemon.wait_log(f"kind=upstream_failed request_id=half-{len(blank)} ")


async def test_a_messages_tokens_are_counted(rig: Rig) -> None:
    rig.a.script = lambda call: call.answer(b'{"count":17}')
    body = {"model": "only/a", "messages": MESSAGE["messages"]}
    reply = await rig.ask("POST", "/v1/messages/count_tokens?beta=true", body)
    assert json.loads(reply.body) == {"input_tokens": 17}
    assert rig.a.calls[0].path == "/v1/chat/render?tokens=false"


async def test_a_response_is_made_and_breaks_off_in_its_own_words(rig: Rig) -> None:
    body = {"model": "only/a", "input": "hi"}
    reply = await rig.ask("POST", "/v1/responses", body)
    assert (reply.status, json.loads(reply.body)["status"]) == (200, "completed")

    async def break_off(call: Call) -> None:
        await call.start_stream()
        await call.chunk(chunks_of("hel")[0])
        call.reset()

    rig.a.script = break_off
    reply = await rig.ask("POST", "/v1/responses", body | {"stream": True})
    events = sse.Parser().feed(reply.body)
    assert events[0].event == "response.created"
    assert "response.completed" not in [event.event for event in events]
    assert "the node a failed" in json.loads(events[-1].data)["response"]["error"]["message"]


async def test_a_response_that_cannot_be_read_is_refused(rig: Rig) -> None:
    reply = await rig.ask("POST", "/v1/responses", b"{")
    assert json.loads(reply.body)["error"]["code"] == "invalid_json"

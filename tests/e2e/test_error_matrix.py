"""Every route and every class of error: before an answer and within a stream, in the dialect's own
shape and with the words and headers that its clients look for."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from cortex_core import errors
from cortex_core.errors import CortexError, PreflightFailed, render_openai
from cortex_core.wire import sse
from tests.fleet.conftest import Reply, Rig, eventually, running_rig
from tests.fleet.scripted_neuron import Call, Script, ScriptedNeuron, answer_hello, chunks_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS: dict[str, Any] = {
    "max_body_mb": 1,
    "first_byte_timeout_s": 1.0,
    "idle_timeout_s": 1.0,
}
HI = [{"role": "user", "content": "hi"}]

OPENAI_ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/chat/render": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["x"]},
    "/v1/responses": {"input": "hi"},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [1]},
}
ANTHROPIC_ROUTES: dict[str, dict[str, Any]] = {
    "/v1/messages": {"messages": HI, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": HI},
}
ROUTES = OPENAI_ROUTES | ANTHROPIC_ROUTES
STREAMS = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"]

# Each its own, so that what fails on one route is not held against another.
MODELS = {path: f"for{path}" for path in ROUTES}

# As the vendors document them.
OPENAI_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}

# What a node says; each is a class of its own for the client.
TOLD: list[CortexError] = [
    errors.InvalidJson("the request body is not valid JSON"),
    errors.InvalidRequest("top_p: must be from 0 to 1, got 7", param="top_p"),
    errors.ContextLengthExceeded(
        "this model's maximum context length is 2048 tokens, but the prompt alone has 5000",
        overrun=errors.Overrun(5000, 2047),
    ),
    errors.UnsupportedParameter("unsupported parameter: 'audio'", param="audio"),
    PreflightFailed("'m' is damaged", kind="gguf_corrupt"),
    PreflightFailed("'m' fits on no device", kind="insufficient_memory"),
    errors.TemplateRenderFailed("the template says: no tools"),
    errors.PoisonPrompt("the prompt was there each time"),
    errors.RateLimitExceeded("64 requests wait already", retry_after_s=7),
    errors.UpstreamFailed("the worker died"),
    errors.ModelLoading("'m' is being loaded", retry_after_s=9),
    errors.NoCapacity("no room", retry_after_s=11),
    errors.NodeUnavailable("the device has failed", retry_after_s=5),
    errors.ShuttingDown("this node is being stopped", retry_after_s=3),
    errors.Stalled("the worker fell silent"),
    errors.InternalError("a bug of the node's"),
]
NAMES = [error.code for error in TOLD]


class Heard(NamedTuple):
    """What a client can tell of an error. `type` is None within a response, which has none."""

    type: str | None
    code: str | None
    message: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("gateway")
    async with (
        ScriptedNeuron("a", *MODELS.values(), "m") as a,
        running_rig(folder, [a], **SETTINGS) as rig,
    ):
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(module_rig: Rig) -> Rig:
    await module_rig.reset()
    return module_rig


async def ask(rig: Rig, path: str, **fields: Any) -> Reply:
    return await rig.ask("POST", path, {"model": MODELS[path]} | ROUTES[path] | fields)


def heard(path: str, reply: Reply) -> Heard:
    """The error, having its dialect's shape and nothing else."""
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    assert int(reply.headers["content-length"]) == len(reply.body)
    body = json.loads(reply.body)
    if path in ANTHROPIC_ROUTES:
        assert reply.headers["request-id"] == reply.headers["x-request-id"]
        return _heard_anthropic(body)
    return _heard_openai(body)


def _heard_openai(body: dict[str, Any]) -> Heard:
    assert list(body) == ["error"]
    more = ["overrun"] if body["error"]["code"] == "context_length_exceeded" else []
    assert list(body["error"]) == ["message", "type", "code", "param", *more]
    return Heard(body["error"]["type"], body["error"]["code"], body["error"]["message"])


def _heard_anthropic(body: dict[str, Any]) -> Heard:
    assert list(body) == ["type", "error"]
    assert body["type"] == "error"
    assert list(body["error"]) == ["type", "message", "details"]
    error = body["error"]
    return Heard(error["type"], error["details"]["error_code"], error["message"])


def expected(path: str, code: str, status: int, message: str) -> Heard:
    if path in ANTHROPIC_ROUTES:
        if code == "context_length_exceeded":
            message = "prompt is too long: 5000 tokens > 2047 maximum"
        return Heard(ANTHROPIC_TYPES[status], code, message)
    return Heard(OPENAI_TYPES[status], code, message)


def says(error: CortexError) -> Script:
    async def script(call: Call) -> None:
        told = render_openai(error)
        seconds = error.retry_after_s
        headers = {} if seconds is None else {"Retry-After": str(seconds)}
        await call.answer(told, error.status, headers)

    return script


async def crash(call: Call) -> None:
    call.reset()


async def fall_silent(call: Call) -> None:
    await call.gone()


# before an answer


async def ask_all(rig: Rig) -> list[tuple[str, Reply]]:
    """Every route at once, and every one that streams for a stream, too: what there is to wait for
    is waited for once."""
    asked = [(path, {}) for path in ROUTES] + [(path, {"stream": True}) for path in STREAMS]
    replies = await asyncio.gather(*(ask(rig, path, **fields) for path, fields in asked))
    return [(path, reply) for (path, _), reply in zip(asked, replies, strict=True)]


def check(path: str, reply: Reply, code: str, status: int, message: str) -> None:
    """Refused; or, by the time it was, the client had been given a stream with a sign of life."""
    if reply.status == 200 and path in STREAMS:
        wanted = expected_last(path, code, status, message)
        assert (path, heard_last(path, reply)) == (path, wanted)
        return
    assert (path, reply.status) == (path, status)
    assert (path, heard(path, reply)) == (path, expected(path, code, status, message))
    assert ("retry-after" in reply.headers) == (status in (429, 503))


@pytest.mark.parametrize("error", TOLD, ids=NAMES)
async def test_what_a_node_refuses_is_told_in_every_dialect(rig: Rig, error: CortexError) -> None:
    rig.a.script = says(error)
    for path, reply in await ask_all(rig):
        check(path, reply, error.code, error.status, error.message)
        if reply.status in (429, 503):
            assert reply.headers["retry-after"] == str(error.retry_after_s)


async def test_a_model_that_a_node_has_lost_is_told_in_every_dialect(rig: Rig) -> None:
    rig.a.script = says(errors.ModelNotFound("no model 'm' here", param="model"))
    replies = await asyncio.gather(*(ask(rig, path) for path in ROUTES))
    for path, reply in zip(ROUTES, replies, strict=True):
        said = heard(path, reply)
        assert reply.status in (404, 503)
        assert said == expected(path, said.code or "", reply.status, said.message)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"{", 400, "invalid_json", "not valid JSON"),
        (b"", 400, "invalid_json", "empty|not valid JSON"),
        (b"[]", 400, "invalid_request", "a JSON object"),
        (b'{"model": 7}', 400, "invalid_request", "model|messages"),
        (b" " * (1024 * 1024 + 1), 413, "request_too_large", "gateway.max_body_mb"),
    ],
    ids=["half", "empty", "list", "wrong", "large"],
)
async def test_what_cannot_be_read_is_told_in_the_dialect(
    rig: Rig, path: str, body: bytes, status: int, code: str, words: str
) -> None:
    reply = await rig.ask("POST", path, body)
    assert reply.status == status
    said = heard(path, reply)
    assert any(word in said.message for word in words.split("|"))
    assert said == expected(path, code, status, said.message)
    assert not rig.a.calls


@pytest.mark.parametrize("path", ROUTES)
async def test_an_encoding_that_is_not_undone_is_told_in_the_dialect(rig: Rig, path: str) -> None:
    reply = await rig.ask("POST", path, b"x", headers={"content-encoding": "br"})
    assert (reply.status, reply.headers["accept-encoding"]) == (415, "gzip, deflate")
    said = heard(path, reply)
    assert "'br'" in said.message
    assert said == expected(path, "unsupported_encoding", 415, said.message)
    assert not rig.a.calls


@pytest.mark.parametrize("path", ROUTES)
async def test_a_model_that_is_nowhere_is_told_in_the_dialect(rig: Rig, path: str) -> None:
    reply = await ask(rig, path, model="no/such-model")
    assert reply.status == 404
    said = heard(path, reply)
    assert "no/such-model" in said.message
    assert said == expected(path, "model_not_found", 404, said.message)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/responses"])
async def test_what_a_translation_does_not_know_is_told_in_the_dialect(rig: Rig, path: str) -> None:
    reply = await ask(rig, path, no_such_parameter=1)
    assert reply.status == 400
    said = heard(path, reply)
    assert "no_such_parameter" in said.message
    assert said == expected(path, "unsupported_parameter", 400, said.message)


async def test_a_node_that_crashes_is_told_in_every_dialect(rig: Rig) -> None:
    rig.a.script = crash
    words = "the node a failed before it answered: connection reset by peer"
    for path, reply in await ask_all(rig):
        check(path, reply, "upstream_failed", 502, words)


async def test_a_node_that_falls_silent_is_told_in_every_dialect(rig: Rig) -> None:
    rig.a.script = fall_silent
    for path, reply in await ask_all(rig):
        check(path, reply, "stalled", 504, "the node a sent nothing for 1 s")


async def test_a_node_out_of_reach_is_told_in_every_dialect(rig: Rig) -> None:
    await rig.a.disappear()
    await rig.until_refused("a")
    for path, reply in await ask_all(rig):
        words = f"the model {MODELS[path]!r} is only on unreachable nodes: a (connection refused)"
        assert words in heard(path, reply).message
        check(path, reply, "node_unavailable", 503, heard(path, reply).message)


async def test_a_gateway_that_is_being_stopped_says_so_in_every_dialect(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        word, done = chunks_of("one")
        await call.start_stream()
        await call.chunk(word)
        await go_on.wait()
        await call.chunk(done)
        await call.end()

    async with (
        ScriptedNeuron("a", *MODELS.values(), "m") as a,
        running_rig(tmp_path, [a]) as rig,
    ):
        await rig.until_reachable("a")
        a.script = script
        body = {"model": "m", "messages": HI, "stream": True}
        async with rig.client.post(rig.url + "/v1/chat/completions", json=body) as held:
            await held.content.readany()
            a.script = answer_hello
            rig.daemon.signal(signal.SIGTERM)

            async def is_draining() -> bool:
                return (await ask(rig, "/tokenize")).status == 503

            await eventually(is_draining)
            for path in ROUTES:
                reply = await ask(rig, path)
                assert reply.status == 503
                assert int(reply.headers["retry-after"]) > 0
                said = heard(path, reply)
                assert said == expected(path, "shutting_down", 503, said.message)
            go_on.set()
            assert (await held.read()).endswith(b"data: [DONE]\n\n")


# within a stream


def heard_last(path: str, reply: Reply) -> Heard:
    """The error that a stream ended with, after which there is nothing."""
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["x-request-id"]
    assert reply.body.endswith(b"\n\n")
    events = sse.Parser().feed(reply.body)
    if path == "/v1/messages":
        assert events[-1].event == "error"
        assert not [event for event in events if event.event == "message_stop"]
        return _heard_anthropic(json.loads(events[-1].data))
    if path == "/v1/responses":
        return _heard_responses(events)
    assert b"[DONE]" not in reply.body
    return _heard_openai(json.loads(events[-1].data))


def _heard_responses(events: list[sse.Event]) -> Heard:
    values = [json.loads(event.data) for event in events]
    assert [event.event for event in events[-2:]] == ["error", "response.failed"]
    error, failed = values[-2:]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    assert sorted(error) == ["code", "message", "param", "sequence_number", "type"]
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["message"] == error["message"]
    return Heard(None, error["code"], error["message"])


def expected_last(path: str, code: str, status: int, message: str) -> Heard:
    if path == "/v1/responses":
        return Heard(None, code, message)
    return expected(path, code, status, message)


def first_chunk(path: str) -> bytes:
    if path == "/v1/completions":
        return b'data: {"object":"text_completion","choices":[{"index":0,"text":"one"}]}\n\n'
    return chunks_of("one")[0]


def then(path: str, end: Callable[[Call], Awaitable[None]]) -> Script:
    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(first_chunk(path))
        await end(call)

    return script


@pytest.mark.parametrize("error", TOLD, ids=NAMES)
@pytest.mark.parametrize("path", STREAMS)
async def test_what_a_node_says_within_a_stream_is_its_last_event(
    rig: Rig, path: str, error: CortexError
) -> None:
    async def end(call: Call) -> None:
        await call.chunk(b"data: " + json.dumps(render_openai(error)).encode() + b"\n\n")
        await call.end()

    rig.a.script = then(path, end)
    reply = await ask(rig, path, stream=True)
    wanted = expected_last(path, error.code, error.status, error.message)
    assert heard_last(path, reply) == wanted
    assert b"one" in reply.body


@pytest.mark.parametrize("path", STREAMS)
async def test_a_node_that_crashes_within_a_stream_is_its_last_event(rig: Rig, path: str) -> None:
    rig.a.script = then(path, crash)
    said = heard_last(path, await ask(rig, path, stream=True))
    assert "the node a failed in the middle of its answer" in said.message
    assert said == expected_last(path, "upstream_failed", 502, said.message)


async def test_a_node_that_falls_silent_within_a_stream_is_its_last_event(rig: Rig) -> None:
    for path in STREAMS:
        rig.a.script = then(path, fall_silent)
        said = heard_last(path, await ask(rig, path, stream=True))
        assert "the node a sent nothing for 1 s" in said.message
        assert said == expected_last(path, "stalled", 504, said.message)


async def test_none_of_this_was_logged_as_a_bug(rig: Rig) -> None:
    assert "Traceback" not in rig.daemon.log
    assert "a bug" not in rig.daemon.log.replace("a bug of the node's", "")

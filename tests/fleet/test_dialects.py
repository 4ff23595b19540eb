"""A dialect that is not the neurons' own: its requests are translated, and all its client hears.

The dialect is this test's, as small as one can be; those that ship are tested where they are.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from cortex_core.envelopes.parameters import decode_object
from cortex_core.errors import CortexError, InvalidRequest, UpstreamFailed
from cortex_core.translate.names import Names
from cortex_core.wire import sse
from cortex_gateway import proxy
from cortex_gateway.dialects import DIALECTS, Counting, Dialect, Route
from tests.fleet.in_process import Desk, be_impatient, running_desk
from tests.fleet.scripted_neuron import Call, ScriptedNeuron, chunks_of, completion


def said(text: str) -> bytes:
    return sse.encode(text.encode(), event="said")


class Shouting(Dialect):
    """Everything is said in capitals."""

    def error_body(self, error: CortexError) -> bytes:
        return json.dumps({"no": error.message.upper(), "code": error.code}).encode()

    def error_event(self, error: CortexError) -> bytes:
        return sse.encode(self.error_body(error), event="no")


class Shout(Shouting):
    """A Translation. `{"shout": text, "at": model}` becomes a chat."""

    def __init__(self, body: bytes) -> None:
        values = decode_object(body)
        if not isinstance(values.get("shout"), str):
            raise InvalidRequest("shout: expected a string", param="shout")
        self.model: str = values["at"]
        self.is_stream = bool(values.get("stream"))
        self.ignored = tuple(sorted(values.keys() & {"loudness", "pitch"}))
        self.names = Names({"reasoning_effort": "effort", "enable_thinking": ""})
        messages = [{"role": "user", "content": values["shout"]}]
        self.chat = msgspec.json.encode(
            {"model": self.model, "stream": self.is_stream, "messages": messages}
        )
        self.began: tuple[int, int] | None = None
        self.is_open = self.is_ended = False

    def started(self, prompt: int, cached: int) -> None:
        self.began = (prompt, cached)

    def keep_alive(self) -> bytes:
        return self._opening() + said("WAIT")

    def feed(self, events: bytes) -> bytes:
        out = self._opening()
        for event in sse.Parser().feed(events):
            if event.data == b"[DONE]":
                self.is_ended = True
                return out + said("OVER")
            try:
                chunk = json.loads(event.data)
                if chunk["choices"]:
                    out += said(chunk["choices"][0]["delta"]["content"].upper())
            except (ValueError, KeyError):
                raise UpstreamFailed("the node sent no chat stream") from None
        return out

    def whole(self, body: bytes) -> bytes:
        try:
            text = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError):
            raise UpstreamFailed("the node sent no chat") from None
        return json.dumps({"shouted": text.upper(), "began": self.began}).encode()

    def _opening(self) -> bytes:
        opening = b"" if self.is_open else said(f"BEGIN {self.began}")
        self.is_open = True
        return opening


ROUTES = {
    "/shout": Route("/v1/chat/completions", Shouting(), is_generating=True, translate=Shout),
    "/shout/count": Route(
        "/v1/chat/render?tokens=false",
        Shouting(),
        translate=lambda body: Counting(Shout(body)),
    ),
    "/v1/chat/completions": Route("/v1/chat/completions", is_generating=True),
}
OPENED = said("BEGIN None")
IGNORED = {"X-Cortex-Ignored": "user, enable_thinking, reasoning_effort"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)


@pytest_asyncio.fixture
async def a() -> AsyncIterator[ScriptedNeuron]:
    async with ScriptedNeuron("a", "m", "only/a") as neuron:
        yield neuron


@pytest_asyncio.fixture
async def b() -> AsyncIterator[ScriptedNeuron]:
    async with ScriptedNeuron("b", "m") as neuron:
        yield neuron


@pytest_asyncio.fixture
async def desk(a: ScriptedNeuron, b: ScriptedNeuron) -> AsyncIterator[Desk]:
    async with running_desk(a, b, routes=ROUTES, max_body_mb=1) as desk:
        yield desk


def shout(**fields: Any) -> dict[str, Any]:
    return {"at": "m", "shout": "hi"} | fields


async def test_a_whole_answer_is_translated(a: ScriptedNeuron, desk: Desk) -> None:
    cache = {"X-Cortex-Cache": "reused=6 computed=4 source=live"}
    a.script = lambda call: call.answer(completion("hello"), headers=cache)
    reply = await desk.ask("/shout", shout()).reply()
    assert json.loads(reply.body) == {"shouted": "HELLO", "began": [10, 6]}
    assert reply.headers["content-length"] == str(len(reply.body))
    assert reply.headers["x-cortex-node"] == "a"
    assert reply.headers["x-request-id"]
    (call,) = a.calls
    assert call.path == "/v1/chat/completions"
    assert call.json["messages"] == [{"role": "user", "content": "hi"}]
    (outcome,) = desk.outcomes
    assert (outcome.model, outcome.kind, outcome.streamed) == ("m", "ok", False)
    assert outcome.usage is not None
    assert outcome.usage.prompt == 10


@pytest.mark.parametrize("piece", [1, 7, 61, 100_000])
async def test_a_stream_cut_anywhere_is_translated_event_by_event(
    a: ScriptedNeuron, desk: Desk, piece: int
) -> None:
    sent = b"".join([b": hello\n\n", *chunks_of("Grüße", "東京", usage=True)])

    async def script(call: Call) -> None:
        await call.start_stream({"X-Cortex-Cache": "reused=6 computed=4 source=live"})
        for start in range(0, len(sent), piece):
            await call.chunk(sent[start : start + piece])
        await call.end()

    a.script = script
    reply = await desk.ask("/shout", shout(stream=True)).reply()
    assert reply.body == b"".join(map(said, ["BEGIN (10, 6)", "GRÜSSE", "東京", "OVER"]))
    assert reply.headers["content-type"] == "text/event-stream"
    (outcome,) = desk.outcomes
    assert outcome.streamed
    assert outcome.usage is not None
    assert (outcome.usage.prompt, outcome.usage.cached, outcome.usage.completion) == (10, 6, 4)
    assert outcome.cache == "reused=6 computed=4 source=live"


async def test_each_event_arrives_when_it_is_sent(a: ScriptedNeuron, desk: Desk) -> None:
    go_on = asyncio.Event()
    first, second, done = chunks_of("one", "two")

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(first + second[:20])
        await go_on.wait()
        await call.chunk(second[20:] + done)
        await call.end()

    a.script = script
    asked = desk.ask("/shout", shout(stream=True))
    await asked.until(said("ONE"))
    go_on.set()
    assert (await asked.reply()).body.endswith(said("TWO") + said("OVER"))


async def test_an_end_without_its_blank_line_is_an_end(a: ScriptedNeuron, desk: Desk) -> None:
    one = chunks_of("one")[0]
    a.script = lambda call: call.stream(one + b"data: [DONE]")
    reply = await desk.ask("/shout", shout(stream=True)).reply()
    assert reply.body == OPENED + said("ONE") + said("OVER")
    assert desk.outcomes[0].kind == "ok"


async def test_a_long_event_is_translated_in_one_piece(a: ScriptedNeuron, desk: Desk) -> None:
    long, done = chunks_of("x" * 400_000)
    a.script = lambda call: call.stream(long[:300_000], long[300_000:], done)
    reply = await desk.ask("/shout", shout(stream=True)).reply()
    assert said("X" * 400_000) in reply.body


@pytest.mark.parametrize("broken", [b"data: nonsense\n\n", b"data: " + b"x" * 2000])
async def test_what_is_no_chat_stream_ends_in_an_error_event(
    a: ScriptedNeuron, desk: Desk, monkeypatch: pytest.MonkeyPatch, broken: bytes
) -> None:
    monkeypatch.setattr("cortex_gateway.relay.MAX_EVENT_BYTES", 1000)
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(chunks_of("one")[0])
        await go_on.wait()
        await call.chunk(broken)
        await call.gone()

    a.script = script
    asked = desk.ask("/shout", shout(stream=True))
    await asked.until(said("ONE"))
    go_on.set()
    reply = await asked.reply()
    rest = reply.body.removeprefix(OPENED + said("ONE"))
    assert rest.startswith(b"event: no\n")
    assert rest.count(b"\n\n") == 1
    assert desk.outcomes[0].code == "upstream_failed"


async def test_what_was_ignored_by_either_is_told(a: ScriptedNeuron, desk: Desk) -> None:
    a.script = lambda call: call.answer(completion("x"), headers=IGNORED)
    reply = await desk.ask("/shout", shout(pitch=1, loudness=2)).reply()
    assert reply.headers["x-cortex-ignored"] == "user, effort, loudness, pitch"


# errors, each in the dialect's own words


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b'{"at":"m"}', 400, "invalid_request"),
        (b'{"at":"nobody/has-this","shout":"x"}', 404, "model_not_found"),
        (b'{"at":"","shout":"x"}', 400, "invalid_request"),
        (b"x" * 1_100_000, 413, "request_too_large"),
    ],
)
async def test_a_refused_request_hears_it_in_its_dialect(
    desk: Desk, body: bytes, status: int, code: str
) -> None:
    reply = await desk.ask("/shout", body).reply()
    assert (reply.status, json.loads(reply.body)["code"]) == (status, code)
    assert list(json.loads(reply.body)) == ["no", "code"]
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    assert desk.outcomes[0].kind == "rejected"


async def test_a_drain_refuses_in_the_dialect(desk: Desk) -> None:
    await desk.gateway.admission.drain(0)
    reply = await desk.ask("/shout", shout()).reply()
    assert (reply.status, json.loads(reply.body)["code"]) == (503, "shutting_down")
    assert int(reply.headers["retry-after"]) > 0


async def test_a_bug_is_told_in_the_dialect(a: ScriptedNeuron, desk: Desk) -> None:
    a.script = lambda call: call.answer({"choices": [3]})  # this test's translation trips over it
    reply = await desk.ask("/shout", shout()).reply()
    assert (reply.status, json.loads(reply.body)["code"]) == (500, "internal_error")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_neurons_refusal_is_put_into_the_dialect(
    a: ScriptedNeuron, desk: Desk, is_stream: bool
) -> None:
    error = {"message": "full", "type": "x", "code": "rate_limit_exceeded", "param": None}
    a.script = lambda call: call.answer({"error": error}, 429, {"Retry-After": "7"})
    reply = await desk.ask("/shout", shout(stream=is_stream)).reply()
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    assert json.loads(reply.body) == {"no": "FULL", "code": "rate_limit_exceeded"}
    assert reply.headers["content-length"] == str(len(reply.body))


async def test_a_refusal_that_nobody_could_mend_is_put_into_the_dialect(
    a: ScriptedNeuron, desk: Desk
) -> None:
    error = {"message": "loading", "type": "x", "code": "model_loading", "param": None}
    a.script = lambda call: call.answer({"error": error}, 503)
    reply = await desk.ask("/shout", shout(at="only/a")).reply()
    assert reply.status == 503
    assert json.loads(reply.body) == {"no": "LOADING", "code": "model_loading"}


async def test_what_is_no_chat_is_an_upstream_failure(a: ScriptedNeuron, desk: Desk) -> None:
    a.script = lambda call: call.answer({"choices": [{"text": "?"}]})
    reply = await desk.ask("/shout", shout()).reply()
    assert (reply.status, json.loads(reply.body)["code"]) == (502, "upstream_failed")


async def test_a_long_whole_answer_is_translated_too(a: ScriptedNeuron, desk: Desk) -> None:
    a.script = lambda call: call.answer(completion("x" * 2_000_000))
    reply = await desk.ask("/shout", shout()).reply()
    assert json.loads(reply.body)["shouted"] == "X" * 2_000_000


@pytest.mark.parametrize("cut", [0, 20])
async def test_a_stream_that_breaks_off_ends_in_the_dialects_error_event(
    a: ScriptedNeuron, desk: Desk, cut: int
) -> None:
    one, two, _ = chunks_of("one", "two")

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(one + two[:cut])
        call.reset()

    a.script = script
    reply = await desk.ask("/shout", shout(stream=True)).reply()
    rest = reply.body.removeprefix(OPENED + said("ONE"))
    assert rest.startswith(b"event: no\ndata: ")
    assert rest.count(b"\n\n") == 1
    assert desk.outcomes[0].code == "upstream_failed"


async def test_a_neurons_error_event_becomes_the_dialects(a: ScriptedNeuron, desk: Desk) -> None:
    failed = b'data: {"error":{"message":"too slow","type":"x","code":"stalled"}}\n\n'
    a.script = lambda call: call.stream(chunks_of("one")[0] + failed)
    reply = await desk.ask("/shout", shout(stream=True)).reply()
    no = sse.encode(b'{"no": "TOO SLOW", "code": "stalled"}', event="no")
    assert reply.body == OPENED + said("ONE") + no
    assert (desk.outcomes[0].kind, desk.outcomes[0].code) == ("stalled", "stalled")


async def test_another_replica_answers_where_the_first_failed(
    a: ScriptedNeuron, b: ScriptedNeuron, desk: Desk
) -> None:
    async def crash(call: Call) -> None:
        call.reset()

    a.script = crash
    reply = await desk.ask("/shout", shout(stream=True)).reply()
    assert reply.body == b"".join(map(said, ["BEGIN None", "HEL", "LO", "OVER"]))
    assert reply.headers["x-cortex-node"] == "b"


# waiting


@pytest.mark.usefixtures("impatient")
async def test_signs_of_life_are_the_dialects(
    a: ScriptedNeuron, b: ScriptedNeuron, desk: Desk
) -> None:
    go_on = asyncio.Event()

    async def crash(call: Call) -> None:
        await call.start_stream()
        await call.chunk(b": alive\n\n")
        await go_on.wait()
        call.reset()

    a.script = crash
    asked = desk.ask("/shout", shout(stream=True, pitch=1))
    await asked.until(said("WAIT"), 2)
    go_on.set()
    reply = await asked.reply()
    waited = reply.body.count(said("WAIT"))
    assert reply.body == OPENED + said("WAIT") * waited + b"".join(map(said, ["HEL", "LO", "OVER"]))
    assert reply.headers["x-cortex-ignored"] == "pitch"
    assert len(b.calls) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_failure_after_signs_of_life_is_the_dialects_error_event(
    a: ScriptedNeuron, desk: Desk
) -> None:
    go_on = asyncio.Event()
    error = {"message": "no", "type": "x", "code": "invalid_request", "param": None}

    async def refuse(call: Call) -> None:
        await go_on.wait()
        await call.answer({"error": error}, 400)

    a.script = refuse
    asked = desk.ask("/shout", shout(stream=True))
    await asked.until(said("WAIT"))
    go_on.set()
    no = sse.encode(b'{"no": "NO", "code": "invalid_request"}', event="no")
    assert (await asked.reply()).body.endswith(said("WAIT") + no)


# aliases


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/shout"])
async def test_a_neuron_is_asked_for_what_an_alias_stands_for(
    a: ScriptedNeuron, tmp_path: Path, path: str
) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[aliases]\nshort = "only/a"\n', "utf-8")
    async with running_desk(a, routes=ROUTES, models=str(models)) as desk:
        body = {"at": "short", "model": "short", "shout": "hi", "n": 1}
        reply = await desk.ask(path, body).reply()
    assert reply.status == 200
    (call,) = a.calls
    assert call.json["model"] == "only/a"
    assert call.json.get("n") == (1 if path.startswith("/v1") else None)
    assert desk.outcomes[0].model == "only/a"


# counting, and bodies that take long


async def test_a_prompt_is_counted_without_an_answer(a: ScriptedNeuron, desk: Desk) -> None:
    a.script = lambda call: call.answer(b'{"count":17}')
    reply = await desk.ask("/shout/count", shout(stream=True)).reply()
    assert json.loads(reply.body) == {"input_tokens": 17}
    (call,) = a.calls
    assert call.path == "/v1/chat/render?tokens=false"
    assert call.json["messages"] == [{"role": "user", "content": "hi"}]
    assert not desk.outcomes[0].streamed


@pytest.mark.parametrize("answer", [b"{}", b'{"count":"many"}', b"[]"])
async def test_what_is_no_count_is_an_upstream_failure(
    a: ScriptedNeuron, desk: Desk, answer: bytes
) -> None:
    a.script = lambda call: call.answer(answer)
    reply = await desk.ask("/shout/count", shout()).reply()
    assert (reply.status, json.loads(reply.body)["code"]) == (502, "upstream_failed")


@pytest.mark.parametrize("body", [b"{", b'{"at":"m","shout":7}'])
async def test_a_long_body_is_translated_on_a_thread(
    a: ScriptedNeuron, desk: Desk, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(proxy, "TRANSLATED_AT_ONCE_BYTES", 0)
    a.script = lambda call: call.answer(completion("hello"))
    reply = await desk.ask("/shout", shout()).reply()
    assert json.loads(reply.body)["shouted"] == "HELLO"
    assert (await desk.ask("/shout", body).reply()).status == 400


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
    ],
)
async def test_what_goes_on_from_a_kept_response_is_translated_on_a_thread(
    a: ScriptedNeuron, more: dict[str, Any]
) -> None:
    """Few bytes of a client's may stand for megabytes of conversation."""
    threads: list[threading.Thread] = []
    route = DIALECTS["/v1/responses"]

    def translate(body: bytes) -> Any:
        threads.append(threading.current_thread())
        assert route.translate is not None
        return route.translate(body)

    routes = {"/v1/responses": route._replace(translate=translate)}
    async with running_desk(a, routes=routes) as desk:
        body = {"model": "m", "input": "hi"}
        assert (await desk.ask("/v1/responses", body | more).reply()).status == 404
        a.script = lambda call: call.answer(completion("hello"))
        assert (await desk.ask("/v1/responses", body).reply()).status == 200
    assert threads[0] is not threading.current_thread()
    assert threads[1] is threading.current_thread()

"""A client whose answer is long in coming: what it hears meanwhile, and what may still go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cortex_core.wire.sse import KEEP_ALIVE
from tests.fleet.conftest import Rig
from tests.fleet.in_process import Desk, be_impatient, running_desk
from tests.fleet.scripted_neuron import Call, ScriptedNeuron, chunks_of, completion
from tests.fleet.test_broken_answers import error_of, last_event

HELLO = b"".join(chunks_of("hel", "lo"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)


class Held:
    """A script that waits to be released before it goes on as `then` says."""

    def __init__(self, then) -> None:
        self.has_come = asyncio.Event()
        self.release = asyncio.Event()
        self._then = then

    async def __call__(self, call: Call) -> None:
        self.has_come.set()
        await self.release.wait()
        await self._then(call)


async def say_hello(call: Call) -> None:
    await call.stream(*chunks_of("hel", "lo"))


async def crash(call: Call) -> None:
    call.reset()


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
    async with running_desk(a, b) as desk:
        yield desk


@pytest.mark.usefixtures("impatient")
async def test_a_stream_that_waits_for_its_prefill_hears_signs_of_life(
    a: ScriptedNeuron, desk: Desk
) -> None:
    a.script = held = Held(say_hello)
    asked = desk.chat(stream=True, headers={"x-request-id": "mine"})
    await asked.until(KEEP_ALIVE, 3)
    held.release.set()
    reply = await asked.reply()
    assert reply.status == 200
    assert reply.headers == {"content-type": "text/event-stream", "x-request-id": "mine"}
    assert reply.body.replace(KEEP_ALIVE, b"") == HELLO
    assert reply.body.endswith(HELLO)
    (outcome,) = desk.outcomes
    assert (outcome.kind, outcome.status, outcome.node) == ("ok", 200, "a")
    assert outcome.ttft_s is not None
    assert outcome.ttft_s > 0.05 + 2 * 0.02  # to the answer, not to the first sign of life


async def test_a_quick_stream_hears_none(a: ScriptedNeuron, desk: Desk) -> None:
    reply = await desk.chat(stream=True).reply()
    assert reply.body == HELLO
    assert reply.headers["x-cortex-node"] == "a"


@pytest.mark.usefixtures("impatient")
async def test_an_answer_that_is_no_stream_comes_alone(a: ScriptedNeuron, desk: Desk) -> None:
    a.script = held = Held(lambda call: call.answer(completion("late")))
    asked = desk.chat()
    await held.has_come.wait()
    await asyncio.sleep(0.15)  # several signs of life would have come by now
    assert asked.status == 0
    held.release.set()
    reply = await asked.reply()
    assert json.loads(reply.body) == completion("late")
    assert reply.headers["x-cortex-node"] == "a"


@pytest.mark.usefixtures("impatient")
async def test_silence_within_an_answer_is_broken_too(a: ScriptedNeuron, desk: Desk) -> None:
    go_on = asyncio.Event()

    async def pause(call: Call) -> None:
        one, two, done = chunks_of("one", "two")
        await call.start_stream()
        await call.chunk(one)
        await call.chunk(two[:10])
        await go_on.wait()
        await call.chunk(two[10:] + done)
        await call.end()

    a.script = pause
    asked = desk.chat(stream=True)
    await asked.until(KEEP_ALIVE, 2)
    go_on.set()
    reply = await asked.reply()
    assert reply.body.replace(KEEP_ALIVE, b"") == b"".join(chunks_of("one", "two"))


async def test_no_sign_of_life_falls_into_an_event(
    a: ScriptedNeuron, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event too long to be held is passed on in pieces."""
    be_impatient(monkeypatch, silence_s=0.5)
    go_on = asyncio.Event()
    long, done = chunks_of("x" * 400_000)

    async def pause(call: Call) -> None:
        await call.start_stream()
        await call.chunk(long[:300_000])
        await go_on.wait()
        await call.chunk(long[300_000:] + done)
        await call.end()

    a.script = pause
    asked = desk.chat(stream=True)
    await asked.until(b"x" * 10_000)
    await asyncio.sleep(0.6)  # several signs of life would have come by now
    go_on.set()
    assert (await asked.reply()).body == long + done


@pytest.mark.usefixtures("impatient")
async def test_another_replica_answers_after_signs_of_life(
    a: ScriptedNeuron, b: ScriptedNeuron, desk: Desk
) -> None:
    a.script = held = Held(crash)
    asked = desk.chat(stream=True)
    await asked.until(KEEP_ALIVE)
    held.release.set()
    reply = await asked.reply()
    assert reply.body.replace(KEEP_ALIVE, b"") == HELLO
    assert (len(a.calls), len(b.calls)) == (1, 1)
    (outcome,) = desk.outcomes
    assert (outcome.kind, outcome.node, outcome.retries) == ("ok", "b", 1)


async def test_a_nodes_own_signs_of_life_are_no_answer(
    a: ScriptedNeuron, b: ScriptedNeuron, desk: Desk
) -> None:
    async def live_and_die(call: Call) -> None:
        await call.start_stream()
        await call.chunk(b": still here\n\n")
        await held.release.wait()
        call.reset()

    a.script = held = Held(live_and_die)
    asked = desk.chat(stream=True)
    await held.has_come.wait()
    held.release.set()
    reply = await asked.reply()
    assert reply.body == HELLO
    assert reply.headers["x-cortex-node"] == "b"


@pytest.mark.usefixtures("impatient")
async def test_a_nodes_own_signs_of_life_pass(a: ScriptedNeuron, desk: Desk) -> None:
    go_on = asyncio.Event()

    async def live(call: Call) -> None:
        await call.start_stream({"X-Cortex-Ignored": "user"})
        await call.chunk(b": first\n\n")
        await go_on.wait()
        await call.chunk(b": second\n\n")
        for chunk in chunks_of("hel", "lo"):
            await call.chunk(chunk)
        await call.end()

    a.script = live
    asked = desk.chat(stream=True)
    await asked.until(KEEP_ALIVE)
    go_on.set()
    reply = await asked.reply()
    assert b": second\n\n" in reply.body
    assert reply.body.endswith(HELLO)
    # The node's head was there before the stream was opened.
    assert reply.headers["x-cortex-ignored"] == "user"
    assert "x-cortex-node" not in reply.headers


@pytest.mark.usefixtures("impatient")
async def test_a_failure_after_signs_of_life_is_an_error_event(
    a: ScriptedNeuron, b: ScriptedNeuron, desk: Desk
) -> None:
    a.script = held = Held(crash)
    b.script = crash
    asked = desk.chat(stream=True)
    await asked.until(KEEP_ALIVE)
    held.release.set()
    reply = await asked.reply()
    assert reply.status == 200
    assert last_event(reply.body)["error"]["code"] == "upstream_failed"
    assert b"[DONE]" not in reply.body
    (outcome,) = desk.outcomes
    assert (outcome.kind, outcome.status, outcome.code) == (
        "upstream_failed",
        200,
        "upstream_failed",
    )
    assert outcome.ttft_s is None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [400, 503])
async def test_a_refusal_after_signs_of_life_is_an_error_event(
    a: ScriptedNeuron, desk: Desk, status: int
) -> None:
    code = {400: "context_length_exceeded", 503: "model_loading"}[status]
    error = {"message": "no", "type": "x", "code": code, "param": "messages"}
    a.script = held = Held(lambda call: call.answer({"error": error}, status))
    asked = desk.chat("only/a", stream=True)
    await asked.until(KEEP_ALIVE)
    held.release.set()
    reply = await asked.reply()
    told = last_event(reply.body)["error"]
    assert (told["code"], told["message"], told["param"]) == (code, "no", "messages")
    assert desk.outcomes[0].code == code


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("size", [10, 2_000_000])
async def test_a_stream_that_is_answered_with_something_else_fails(
    a: ScriptedNeuron, desk: Desk, size: int
) -> None:
    a.script = held = Held(lambda call: call.answer(completion("x" * size)))
    asked = desk.chat("only/a", stream=True)
    await asked.until(KEEP_ALIVE)
    held.release.set()
    error = last_event((await asked.reply()).body)["error"]
    assert error["message"] == "the node a answered a stream with something else"


async def test_no_sign_of_life_falls_into_an_answer_that_is_no_stream(
    a: ScriptedNeuron, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_impatient(monkeypatch, silence_s=0.5)
    go_on = asyncio.Event()
    body = json.dumps(completion("x" * 2_000_000)).encode()

    async def pause(call: Call) -> None:
        await call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        await call.raw(body[:1_500_000])
        await go_on.wait()
        await call.raw(body[1_500_000:])

    a.script = pause
    asked = desk.chat("only/a", stream=True)
    await asked.until(b"x" * 1_000_000)
    await asyncio.sleep(0.6)  # several signs of life would have come by now
    go_on.set()
    assert (await asked.reply()).body == body


async def test_a_stream_that_begins_with_an_error_is_refused_as_such(
    a: ScriptedNeuron, desk: Desk
) -> None:
    failed = b'data: {"error":{"message":"too long","type":"x","code":"context_length_exceeded"}}'
    a.script = lambda call: call.stream(b": alive\n\n", failed + b"\n\n")
    reply = await desk.chat("only/a", stream=True).reply()
    assert (reply.status, reply.headers["content-type"]) == (400, "application/json")
    assert error_of(reply.body)["message"] == "too long"


async def test_a_stream_that_begins_with_a_nodes_own_trouble_is_mended_by_another(
    a: ScriptedNeuron, b: ScriptedNeuron, desk: Desk
) -> None:
    failed = b'data: {"error":{"message":"crashed","type":"x","code":"upstream_failed"}}\n\n'
    a.script = lambda call: call.stream(failed)
    reply = await desk.chat(stream=True).reply()
    assert reply.body == HELLO
    assert reply.headers["x-cortex-node"] == "b"


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_takes_no_bytes_hears_no_second_sign_of_life(
    a: ScriptedNeuron, desk: Desk
) -> None:
    a.script = held = Held(say_hello)
    asked = desk.chat(stream=True)
    asked.take_bytes(False)
    await held.has_come.wait()
    await asyncio.sleep(0.15)  # several signs of life would have come by now
    held.release.set()
    asked.take_bytes(True)
    assert (await asked.reply()).body.count(KEEP_ALIVE) <= 1


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_leaves_during_signs_of_life_ends_its_request(
    a: ScriptedNeuron, desk: Desk
) -> None:
    gone = asyncio.Event()

    async def wait(call: Call) -> None:
        await call.gone()
        gone.set()

    a.script = wait
    asked = desk.chat(stream=True)
    await asked.until(KEEP_ALIVE)
    asked.leave()
    await asyncio.wait_for(asked.task, 5)
    await asyncio.wait_for(gone.wait(), 5)
    assert [outcome.kind for outcome in desk.outcomes] == ["client_gone"]
    assert desk.outcomes[0].status == 499


@pytest.mark.usefixtures("impatient")
async def test_two_requests_with_one_id_are_two_requests(a: ScriptedNeuron, desk: Desk) -> None:
    a.script = held = Held(say_hello)
    same = {"x-request-id": "same"}
    asked = [desk.chat("only/a", stream=True, headers=same) for _ in range(2)]
    for each in asked:
        await each.until(KEEP_ALIVE)
    held.release.set()
    replies = [await each.reply() for each in asked]
    assert all(reply.body.endswith(HELLO) for reply in replies)
    assert [outcome.request_id for outcome in desk.outcomes] == ["same", "same"]


async def test_a_request_that_stops_halfway_is_told_so(a: ScriptedNeuron) -> None:
    async with running_desk(a, idle_timeout_s=0.05) as desk:
        asked = desk.ask("/v1/chat/completions", b"", pieces=[b'{"model":', None])
        reply = await asked.reply()
    assert (reply.status, error_of(reply.body)["code"]) == (408, "request_timeout")
    assert desk.outcomes[0].kind == "rejected"


class TestBehindARealServer:
    """The same through hypercorn and a socket, at its real pace."""

    pytestmark = pytest.mark.asyncio(loop_scope="module")

    async def test_a_long_prefill_is_filled_with_signs_of_life(self, rig: Rig) -> None:
        go_on = asyncio.Event()

        async def wait(call: Call) -> None:
            await go_on.wait()
            await say_hello(call)

        rig.a.script = wait
        body = {"model": "only/a", "stream": True}
        async with rig.client.post(rig.url + "/v1/chat/completions", json=body) as response:
            assert response.headers["content-type"] == "text/event-stream"
            assert response.headers["x-request-id"]
            assert await response.content.readexactly(2 * len(KEEP_ALIVE)) == 2 * KEEP_ALIVE
            go_on.set()
            rest = await response.content.read()
        assert rest.replace(KEEP_ALIVE, b"") == HELLO

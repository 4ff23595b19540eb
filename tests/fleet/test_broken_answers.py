"""A node fails in the middle of a request: one more try before the first byte, honesty after it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.fleet.conftest import Rig, eventually
from tests.fleet.scripted_neuron import Call, Script, answer_hello, chunks_of, completion

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVELOPE = {"error": {"message": "the worker is restarting", "type": "x", "code": "model_loading"}}


def error_of(body: bytes) -> dict[str, Any]:
    return msgspec.json.decode(body)["error"]


async def last_told_of_m(rig: Rig) -> str:
    """The newest of what has happened to m on any node."""
    explained = await rig.ask("GET", "/admin/explain/placement?model=m")
    return msgspec.json.decode(explained.body)["story"][-1]["text"]


def last_event(body: bytes) -> dict[str, Any]:
    events = body.removesuffix(b"\n\n").split(b"\n\n")
    return json.loads(events[-1].removeprefix(b"data: "))


async def reset_at_once(call: Call) -> None:
    call.reset()


async def close_at_once(call: Call) -> None:
    call.close()


async def be_at_fault(call: Call) -> None:
    await call.answer({"error": {"message": "?", "type": "x", "code": "internal_error"}}, 500)


async def be_unavailable(call: Call) -> None:
    await call.answer(ENVELOPE, 503, {"Retry-After": "7"})


async def have_lost_the_model(call: Call) -> None:
    await call.answer({"error": {"message": "?", "type": "x", "code": "model_not_found"}}, 404)


async def break_off_within_a_whole_answer(call: Call) -> None:
    await call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    call.close()


async def break_off_after_the_head_of_a_stream(call: Call) -> None:
    await call.start_stream()
    call.reset()


async def break_off_within_the_first_event(call: Call) -> None:
    await call.start_stream()
    await call.chunk(b'data: {"choi')
    call.reset()


async def say_nonsense(call: Call) -> None:
    await call.raw(b"\x00\x01 nonsense\r\n\r\n")
    call.close()


async def answer_no_json(call: Call) -> None:
    await call.answer(b"<html>oops</html>")


async def answer_nothing(call: Call) -> None:
    await call.answer(b"{}")


async def answer_an_error_as_if_all_were_well(call: Call) -> None:
    await call.answer(ENVELOPE)


async def fail_without_an_envelope(call: Call) -> None:
    await call.answer(b"<html>oops</html>", 500, content_type="text/html")


async def redirect(call: Call) -> None:
    await call.answer(b"", 302, {"Location": "http://127.0.0.1:1/"})


FAILURES: list[Script] = [
    reset_at_once,
    close_at_once,
    be_at_fault,
    be_unavailable,
    have_lost_the_model,
    break_off_within_a_whole_answer,
    break_off_after_the_head_of_a_stream,
    break_off_within_the_first_event,
    say_nonsense,
    answer_no_json,
    answer_nothing,
    answer_an_error_as_if_all_were_well,
    fail_without_an_envelope,
    redirect,
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
async def test_a_failure_before_the_first_byte_is_mended_by_another_replica(
    rig: Rig, failure: Script
) -> None:
    rig.a.script = failure  # a is asked first: on a tie the name decides
    reply = await rig.chat()
    assert reply.status == 200
    assert reply.headers["x-cortex-node"] == "b"
    assert json.loads(reply.body) == completion("hello from b")
    assert (len(rig.a.calls), len(rig.b.calls)) == (1, 1)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
async def test_two_failures_are_told_to_the_client(rig: Rig, failure: Script) -> None:
    rig.a.script = rig.b.script = failure
    reply = await rig.chat(stream=True)
    assert reply.status in (500, 502, 503, 404)
    assert error_of(reply.body)["message"]
    assert reply.headers["content-type"] == "application/json"
    assert (len(rig.a.calls), len(rig.b.calls)) == (1, 1)


async def break_off_within_a_stream(call: Call) -> None:
    await call.start_stream()
    await call.chunk(chunks_of("one")[0])
    call.reset()


async def end_a_stream_too_early(call: Call) -> None:
    await call.stream(chunks_of("one")[0])


async def end_a_stream_in_an_error(call: Call) -> None:
    error = {"error": {"message": "the worker died", "type": "x", "code": "upstream_failed"}}
    await call.stream(chunks_of("one")[0], b"data: " + json.dumps(error).encode() + b"\n\n")


async def end_a_stream_in_an_error_and_done(call: Call) -> None:
    error = {"error": {"message": "the worker died", "type": "x", "code": "upstream_failed"}}
    told = b"data: " + json.dumps(error).encode() + b"\n\n"
    await call.stream(chunks_of("one")[0], told, b"data: [DONE]\n\n")


async def say_that_it_has_stalled(call: Call) -> None:
    await call.answer({"error": {"message": "?", "type": "x", "code": "stalled"}}, 504)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    "failure",
    [
        break_off_within_a_stream,
        end_a_stream_too_early,
        end_a_stream_in_an_error,
        end_a_stream_in_an_error_and_done,
        say_that_it_has_stalled,
    ],
    ids=lambda failure: failure.__name__,
)
async def test_a_node_whose_answers_fail_one_after_another_is_put_aside(
    rig: Rig, failure: Script, path: str
) -> None:
    rig.a.script = failure
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
    for _ in range(3):
        await rig.ask("POST", path, body | {"stream": True})
        await rig.until_in_flight("a", 0)
    assert (len(rig.a.calls), len(rig.b.calls)) == (3, 0)
    assert (await last_told_of_m(rig)).startswith("put aside for 1 s: ")


async def test_a_node_that_was_put_aside_is_trusted_as_soon_as_it_answers(rig: Rig) -> None:
    release = asyncio.Event()

    async def stream_slowly(call: Call) -> None:
        first, *rest = chunks_of("one")
        await call.start_stream()
        await call.chunk(first)
        await release.wait()
        for chunk in rest:
            await call.chunk(chunk)
        await call.end()

    rig.a.script = break_off_within_a_stream
    for _ in range(3):
        await rig.chat("only/a", stream=True)
        await rig.until_in_flight("a", 0)
    rig.a.script = stream_slowly
    probe = asyncio.create_task(rig.chat("only/a", stream=True))

    async def is_there() -> bool:
        return len(rig.a.calls) == 4

    await eventually(is_there)
    rig.a.script = answer_hello
    assert (await rig.chat("only/a")).status == 200
    release.set()
    assert (await probe).body.endswith(b"data: [DONE]\n\n")


async def test_a_node_that_refuses_connections_is_skipped(rig: Rig) -> None:
    """Its event stream still lives, so the gateway does not know yet."""
    server = rig.a._server
    assert server is not None
    server.close()
    rig.a._server = None
    await rig.client.close() if rig.client.closed else None
    for writer in [w for w in rig.a._connections if w not in {c._writer for c in rig.a.watchers}]:
        writer.transport.abort()
    reply = await rig.chat()
    assert (reply.status, reply.headers["x-cortex-node"]) == (200, "b")
    alone = await rig.chat("only/a")
    assert (alone.status, error_of(alone.body)["code"]) == (503, "node_unavailable")
    assert error_of(alone.body)["message"] == "the node a cannot be reached: connection refused"
    assert alone.headers["retry-after"]


async def test_with_one_replica_its_own_refusal_passes(rig: Rig) -> None:
    rig.a.script = be_unavailable
    reply = await rig.chat("only/a")
    assert reply.status == 503
    assert json.loads(reply.body) == ENVELOPE
    assert reply.headers["retry-after"] == "7"
    assert len(rig.a.calls) == 1


async def test_a_dropped_connection_is_tried_again_on_the_only_replica(rig: Rig) -> None:
    """The connection may have been kept alive and closing just when the request was sent."""

    async def drop_once(call: Call) -> None:
        if len(rig.a.calls) == 1:
            call.close()
        else:
            await call.answer(completion("second time"))

    rig.a.script = drop_once
    reply = await rig.chat("only/a")
    assert reply.status == 200
    assert len(rig.a.calls) == 2


async def test_a_crash_before_the_answer_is_told_after_one_retry(rig: Rig) -> None:
    rig.a.script = reset_at_once
    reply = await rig.chat("only/a")
    assert (reply.status, error_of(reply.body)["code"]) == (502, "upstream_failed")
    assert "the node a failed before it answered" in error_of(reply.body)["message"]
    assert reply.headers["x-cortex-node"] == "a"
    assert len(rig.a.calls) == 2


@pytest.mark.parametrize("how", ["reset", "close", "end"])
@pytest.mark.parametrize("cut", [0, 20])
async def test_a_stream_that_breaks_off_ends_in_an_error_event_and_no_done(
    rig: Rig, how: str, cut: int
) -> None:
    one, two, _ = chunks_of("one", "two")

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(one)
        await call.chunk(two[:cut]) if cut else None
        await getattr(call, how)() if how == "end" else getattr(call, how)()

    rig.a.script = rig.b.script = script
    reply = await rig.chat(stream=True)
    assert reply.status == 200
    assert reply.body.startswith(one)
    assert b"[DONE]" not in reply.body
    assert reply.body.count(b"\n\n") == 2  # what had arrived of the second event is not passed on
    error = last_event(reply.body)["error"]
    assert error["code"] == "upstream_failed"
    assert "the node a" in error["message"]
    assert len(rig.b.calls) == 0


async def test_a_neurons_own_error_event_is_not_followed_by_another(rig: Rig) -> None:
    failed = b'data: {"error":{"message":"step timed out","type":"x","code":"stalled"}}\n\n'
    rig.a.script = lambda call: call.stream(chunks_of("one")[0], failed)
    reply = await rig.chat("only/a", headers={"x-request-id": "own-error"}, stream=True)
    assert reply.body == chunks_of("one")[0] + failed
    line = rig.daemon.wait_log("request_id=own-error").string
    assert "kind=stalled" in line
    assert "code=stalled" in line


async def test_an_empty_stream_is_a_failure(rig: Rig) -> None:
    rig.a.script = lambda call: call.stream()
    reply = await rig.chat("only/a", stream=True)
    assert (reply.status, error_of(reply.body)["code"]) == (502, "upstream_failed")


async def test_a_long_answer_that_breaks_off_looks_broken(rig: Rig) -> None:
    async def script(call: Call) -> None:
        await call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 3_000_000)
        call.close()

    rig.a.script = script
    body = {"model": "only/a"}
    async with rig.client.post(rig.url + "/v1/chat/completions", json=body) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    rig.daemon.wait_log("kind=upstream_failed request_id=.* model=only/a node=a status=200")


async def test_in_flight_is_zero_after_every_kind_of_failure(rig: Rig) -> None:
    for failure in FAILURES:
        await rig.reset()  # or nobody would ask nodes that have failed so often
        rig.a.script = rig.b.script = failure
        await asyncio.gather(*(rig.chat(stream=bool(n % 2)) for n in range(4)))
    fleet = await rig.fleet()
    assert {name: node["in_flight"] for name, node in fleet.items()} == {"a": 0, "b": 0}

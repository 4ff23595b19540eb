"""What a neuron says is what the client gets."""

from __future__ import annotations

import asyncio
import json
import random
import re

import pytest

from tests.fleet.conftest import Rig, eventually
from tests.fleet.scripted_neuron import Call, chunks_of, completion

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_whole_answer_passes_byte_for_byte(rig: Rig) -> None:
    body = b'{ "odd":  "spacing",\n"choices":[1],"usage":null, "emoji":"\\ud83d\\ude00 \xc3\xa9" }'

    async def script(call: Call) -> None:
        await call.answer(body, headers={"X-Cortex-Cache": "hit=6", "X-Other": "kept"})

    rig.a.script = rig.b.script = script
    reply = await rig.chat()
    assert reply.status == 200
    assert reply.body == body
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-cortex-cache"] == "hit=6"
    assert reply.headers["x-other"] == "kept"
    assert reply.headers["x-cortex-node"] in ("a", "b")


@pytest.mark.parametrize("piece", [1, 2, 7, 61, 100_000])
async def test_a_stream_cut_anywhere_passes_byte_for_byte(rig: Rig, piece: int) -> None:
    sent = b"".join([b": hello\n\n", *chunks_of("Grüße", "😀", "東京", "x" * 3000, usage=True)])

    async def script(call: Call) -> None:
        await call.start_stream()
        for start in range(0, len(sent), piece):
            await call.chunk(sent[start : start + piece])
        await call.end()

    rig.a.script = rig.b.script = script
    reply = await rig.chat(stream=True)
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.body == sent


async def test_a_stream_with_crlf_line_ends_passes_byte_for_byte(rig: Rig) -> None:
    sent = b"".join(chunks_of("a", "b")).replace(b"\n", b"\r\n")

    async def script(call: Call) -> None:
        await call.stream(sent[:40], sent[40:])

    rig.a.script = rig.b.script = script
    assert (await rig.chat(stream=True)).body == sent


async def test_each_event_arrives_when_it_is_sent(rig: Rig) -> None:
    first, second, done = chunks_of("one", "two")
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.chunk(first)
        await go_on.wait()
        await call.chunk(second)
        await call.chunk(done)
        await call.end()

    rig.a.script = rig.b.script = script
    body = {"model": "m", "stream": True}
    async with rig.client.post(rig.url + "/v1/chat/completions", json=body) as response:
        assert await response.content.readexactly(len(first)) == first
        go_on.set()
        assert await response.content.read() == second + done


async def test_an_answer_larger_than_is_held_passes_byte_for_byte(rig: Rig) -> None:
    body = json.dumps(completion(random.Random(1).randbytes(2_000_000).hex())).encode()

    async def script(call: Call) -> None:
        await call.answer(body)

    rig.a.script = rig.b.script = script
    reply = await rig.chat()
    assert reply.body == body
    assert reply.headers["content-length"] == str(len(body))


async def test_a_neurons_refusal_passes_byte_for_byte(rig: Rig) -> None:
    error = {"message": "n: 2 is not supported", "type": "x", "code": "unsupported_parameter"}
    body = json.dumps({"error": error}, indent=1).encode()

    async def script(call: Call) -> None:
        await call.answer(body, 400, {"X-Cortex-Ignored": "user"})

    rig.a.script = rig.b.script = script
    reply = await rig.chat()
    assert (reply.status, reply.body) == (400, body)
    assert reply.headers["x-cortex-ignored"] == "user"
    assert len(rig.a.calls) + len(rig.b.calls) == 1


async def test_the_request_reaches_the_neuron_byte_for_byte(rig: Rig) -> None:
    body = b'\n{"messages" : [], "model":"only/a", "made_up": 1e400, "x": "\\u00e9"}  '
    await rig.ask("POST", "/v1/chat/completions", body, headers={"content-type": "text/plain"})
    (call,) = rig.a.calls
    assert call.body == body
    assert call.headers["content-type"] == "application/json"
    assert call.headers["host"] == rig.a.endpoint.removeprefix("http://")


async def test_a_chunked_request_body_reaches_the_neuron(rig: Rig) -> None:
    async def parts():
        yield b'{"model":'
        yield b'"only/a"}'

    reply = await rig.ask("POST", "/v1/chat/completions", None, data=parts())
    assert reply.status == 200
    assert rig.a.calls[0].body == b'{"model":"only/a"}'


async def test_a_clients_own_headers_stay_at_the_gateway(rig: Rig) -> None:
    sent = {"Authorization": "Bearer secret", "X-Include-Thinking": "1", "Cookie": "a=b"}
    await rig.chat("only/a", headers=sent | {"X-Request-Id": "req-1"})
    seen = rig.a.calls[0].headers
    assert seen["x-include-thinking"] == "1"
    assert seen["x-request-id"] == "req-1"
    assert not {"authorization", "cookie", "accept-encoding", "user-agent"} & seen.keys()


async def test_a_sane_request_id_comes_back_and_an_insane_one_is_replaced(rig: Rig) -> None:
    assert (await rig.chat(headers={"x-request-id": "a-1.b"})).headers["x-request-id"] == "a-1.b"
    for bad in ("has space", "x" * 129, 'quote"'):
        answered = (await rig.chat(headers={"x-request-id": bad})).headers["x-request-id"]
        assert answered != bad
        assert len(answered) == 32


async def test_connections_to_a_neuron_are_reused(rig: Rig) -> None:
    peers = []

    async def script(call: Call) -> None:
        peers.append(call._writer.get_extra_info("peername"))
        await call.answer(completion("x"))

    rig.a.script = script
    for _ in range(5):
        await rig.chat("only/a")
    assert len(set(peers)) == 1


async def test_sixty_four_streams_at_once_do_not_mix(rig: Rig) -> None:
    async def script(call: Call) -> None:
        name = call.json["user"]
        await call.start_stream()
        for chunk in chunks_of(*(f"{name}-{n}" for n in range(20))):
            await call.chunk(chunk)
            await asyncio.sleep(0)
        await call.end()

    rig.a.script = rig.b.script = script
    replies = await asyncio.gather(*(rig.chat(stream=True, user=f"u{n}") for n in range(64)))
    for n, reply in enumerate(replies):
        assert reply.body == b"".join(chunks_of(*(f"u{n}-{i}" for i in range(20))))


async def test_a_slow_client_slows_the_neuron_and_not_the_gateways_memory(rig: Rig) -> None:
    sent = 0
    piece = chunks_of("x" * 60_000)[0]

    async def script(call: Call) -> None:
        nonlocal sent
        await call.start_stream()
        while sent < 100_000_000:
            await call.chunk(piece)
            sent += len(piece)

    rig.a.script = script
    body = {"model": "only/a", "stream": True}
    async with rig.client.post(rig.url + "/v1/chat/completions", json=body) as response:
        await response.content.readexactly(10)
        last = -1

        async def has_stopped() -> bool:
            nonlocal last
            before, last = last, sent
            await asyncio.sleep(0.2)
            return sent == before

        await eventually(has_stopped)
        assert sent < 30_000_000  # what the kernel and three readers buffer on the way


async def test_usage_is_read_from_a_stream_that_has_it(rig: Rig) -> None:
    rig.a.script = lambda call: call.stream(*chunks_of("x", usage=True))
    await rig.chat("only/a", headers={"x-request-id": "with-usage"}, stream=True)
    line = rig.daemon.wait_log("request_id=with-usage").string
    assert "prompt=10 cached=6 completion=4 reasoning=1" in line


async def test_a_stream_whose_end_nobody_closes_is_complete_after_done(rig: Rig) -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        for chunk in chunks_of("x"):
            await call.chunk(chunk)
        call.reset()

    rig.a.script = script
    reply = await rig.chat("only/a", stream=True)
    assert reply.body == b"".join(chunks_of("x"))


async def test_priority_passes_and_the_caller_is_who_the_gateway_says(rig: Rig) -> None:
    async def script(call: Call) -> None:
        await call.answer(completion("ok"))

    rig.a.script = rig.b.script = script
    mine = {"X-Cortex-Priority": "batch", "X-Cortex-Caller": "boss", "Authorization": "Bearer k"}
    await rig.chat(headers=mine)
    (call,) = rig.a.calls + rig.b.calls
    assert call.headers["x-cortex-priority"] == "batch"
    assert call.headers["x-cortex-caller"].startswith("key-")
    assert "authorization" not in call.headers
    rig.a.calls.clear()
    rig.b.calls.clear()
    await rig.chat()
    (call,) = rig.a.calls + rig.b.calls
    assert call.headers["x-cortex-caller"] == "127.0.0.1"
    assert "x-cortex-priority" not in call.headers


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limit_exceeded"), (503, "no_capacity")])
async def test_a_full_queue_says_when_to_come_back(rig: Rig, status: int, code: str) -> None:
    error = {"message": "full", "type": "x", "code": code, "param": None}

    async def script(call: Call) -> None:
        await call.answer({"error": error}, status, {"Retry-After": "7"})

    rig.a.script = rig.b.script = script
    reply = await rig.chat(stream=True)
    assert (reply.status, reply.headers["retry-after"]) == (status, "7")
    assert json.loads(reply.body)["error"]["code"] == code


async def test_requests_sent_in_one_go_are_answered_one_after_the_other(rig: Rig) -> None:
    async def script(call: Call) -> None:
        await call.answer(completion(call.json["user"]))

    rig.a.script = script
    reader, writer = await asyncio.open_connection(*rig.url.removeprefix("http://").split(":"))
    for user in ("first", "second", "third"):
        body = json.dumps({"model": "only/a", "user": user})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\n\r\n{body}".encode())
    for user in ("first", "second", "third"):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        (length,) = re.findall(rb"content-length: (\d+)", head)
        answer = json.loads(await reader.readexactly(int(length)))
        assert answer["choices"][0]["message"]["content"] == user
    writer.close()

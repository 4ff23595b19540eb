"""The chat route, write by write: chunks, headers, silence, errors and clients who leave."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import (
    ChatCompletionChunk,
    ChoiceDelta,
    ChunkChoice,
)
from cortex_core.errors import Fault
from cortex_core.wire import ipc, sse
from neuron.chat.chunks import ChunkEncoder
from neuron.chat.pieces import CallArguments, CallStarted, Piece, Text, Thought
from neuron.routes.chat import routes
from neuron.routes.exchange import cache_header
from tests.unit.chat.played import HELLO, Exchanged, PlayedRegistry, Script, ask, info

TOOLS = [{"type": "function", "function": {"name": "add"}}]
THINKING: Script = [
    ["started"],
    [("marker", "<think>")],
    [("reasoning", "\nhm ")],
    [("reasoning", "ok\n"), ("marker", "</think>"), ("content", "\n\nPa")],
    [("content", "ris"), "stop"],
]
CALLING: Script = [
    ["started"],
    [("content", "Let me see.\n<tool_")],
    [("content", 'call>\n{"name": "add", "argum')],
    [("content", 'ents": {"a": 1,')],
    [("content", ' "b": 2}}\n</tool_call>')],
    ["stop"],
]
TWO_CALLS: Script = [
    ["started"],
    [("content", '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>{"name": ')],
    [("content", '"b", "arguments": {"x": "</tool_call>"}}\n</tool_call>'), "stop"],
]
USAGE_JSON = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


async def _run(script: Script, body: dict[str, Any] | bytes, **more: Any) -> Exchanged:
    return await asyncio.wait_for(Exchanged(PlayedRegistry(script), body, **more).run(), 10)


def _streamed_message(exchanged: Exchanged) -> dict[str, Any]:
    """What a client puts together from the deltas, in the shape of a whole message."""
    message: dict[str, Any] = {"content": None}
    for delta in exchanged.deltas:
        for key in ("content", "reasoning_content"):
            if delta.get(key):
                message[key] = (message.get(key) or "") + delta[key]
        message |= {key: delta[key] for key in ("role",) if key in delta}
        for call in delta.get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                calls.append({"id": call["id"], "function": call["function"], "type": call["type"]})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if not message["content"] and "tool_calls" not in message:
        message["content"] = ""
    return message


def _without_ids(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if calls is not None:
        message = message | {"tool_calls": [call | {"id": ""} for call in calls]}
    return message


# whole answers


async def test_a_whole_answer():
    got = await _run(HELLO, ask())
    assert got.status == 200
    assert got.json["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "finish_reason": "stop",
        }
    ]
    assert got.json["usage"] == USAGE_JSON
    assert got.json["object"] == "chat.completion"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-cortex-cache"] == "reused=8 computed=4 source=cache"


@pytest.mark.parametrize(
    ("script", "more"),
    [
        (HELLO, {}),
        (THINKING, {}),
        (CALLING, {"tools": TOOLS}),
        (CALLING, {}),
        (TWO_CALLS, {"tools": TOOLS}),
        ([*CALLING[:-1], ["length"]], {"tools": TOOLS}),
        ([*CALLING[:3], ["length"]], {"tools": TOOLS}),
        ([["started"], ["stop"]], {}),
        ([["started"], [("content", " \n")], ["length"]], {"tools": TOOLS}),
    ],
)
@pytest.mark.parametrize("headers", [{}, {"x-include-thinking": "Yes"}])
async def test_streamed_and_whole_answers_say_the_same(script, more, headers):
    whole = await _run(script, ask(**more), headers=headers)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = await _run(script, ask(**more, **options), headers=headers)
    (choice,) = whole.json["choices"]
    assert _without_ids(_streamed_message(streamed)) == _without_ids(choice["message"])
    assert streamed.events[-3]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert streamed.events[-2]["usage"] == whole.json["usage"]


async def test_reasoning_is_apart_and_tidy():
    (choice,) = (await _run(THINKING, ask())).json["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "Paris",
        "reasoning_content": "hm ok",
    }


async def test_reasoning_stays_inside_content_when_asked():
    got = await _run(THINKING, ask(), headers={"x-include-thinking": "1"})
    message = got.json["choices"][0]["message"]
    assert message["content"] == "<think>\nhm ok\n</think>\n\nParis"
    assert "reasoning_content" not in message


async def test_a_block_opened_by_the_prompt_is_shown_opened():
    body = ask(chat_template_kwargs={"opens_thinking": True})
    script: Script = [["started"], *THINKING[2:]]
    got = await _run(script, body, headers={"x-include-thinking": "true"})
    content = got.json["choices"][0]["message"]["content"]
    assert content == "<think>\n\nhm ok\n</think>\n\nParis"


async def test_a_user_who_writes_of_a_marker_has_not_begun_a_thought():
    got = await _run(HELLO, ask("what is <think> for?"), headers={"x-include-thinking": "1"})
    assert got.json["choices"][0]["message"]["content"] == "Hello"


async def test_an_answer_that_frames_itself_is_read_without_tools_too():
    template = "{{ messages }}{{ tools }}<|START_ACTION|><|START_RESPONSE|><|END_RESPONSE|>"
    script: Script = [
        ["started"],
        [("content", "<|START_RESP"), ("content", "ONSE|>Hel")],
        [("content", "lo<|END_RESPONSE|>"), "stop"],
    ]
    got = await Exchanged(PlayedRegistry(script, info(template)), ask()).run()
    assert got.json["choices"][0]["message"]["content"] == "Hello"


async def test_a_tool_call():
    (choice,) = (await _run(CALLING, ask(tools=TOOLS))).json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert choice["message"]["content"] == "Let me see."


async def test_a_call_inside_reasoning_is_no_call():
    call = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    script: Script = [
        ["started"],
        [("marker", "<think>"), ("reasoning", call), ("marker", "</think>"), ("content", "no")],
        ["stop"],
    ]
    for headers in ({}, {"x-include-thinking": "1"}):
        got = await _run(script, ask(tools=TOOLS), headers=headers)
        assert "tool_calls" not in got.json["choices"][0]["message"]
        assert call.encode() in got.text.replace(b'\\"', b'"')


async def test_only_calls_leave_no_content():
    message = (await _run(TWO_CALLS, ask(tools=TOOLS))).json["choices"][0]["message"]
    assert message["content"] is None
    assert len({call["id"] for call in message["tool_calls"]}) == 2


# streams


async def test_a_stream_write_by_write():
    got = await _run(HELLO, ask(stream=True))
    assert got.status == 200
    assert got.headers["content-type"].startswith("text/event-stream")
    assert got.headers["x-cortex-cache"] == "reused=8 computed=4 source=cache"
    assert len(got.writes) == 4  # one per step
    assert got.deltas == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert got.events[-2]["choices"][0]["finish_reason"] == "stop"
    assert got.events[-1] == "[DONE]"
    chunks = got.events[:-1]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert got.is_complete


async def test_usage_comes_last_and_without_choices_when_asked():
    got = await _run(HELLO, ask(stream=True, stream_options={"include_usage": True}))
    assert got.events[-2]["choices"] == []
    assert got.events[-2]["usage"] == USAGE_JSON


async def test_a_call_streams_its_name_first():
    got = await _run(CALLING, ask(stream=True, tools=TOOLS))
    calls = [delta["tool_calls"][0] for delta in got.deltas if "tool_calls" in delta]
    assert calls[0]["function"] == {"name": "add", "arguments": ""}
    assert (calls[0]["index"], calls[0]["type"]) == (0, "function")
    assert [call["function"] for call in calls[1:]] == [
        {"arguments": '{"a": 1,'},
        {"arguments": ' "b": 2}'},
    ]
    assert got.events[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_events_of_one_read_are_one_write():
    got = await _run([["started", ("reasoning", "r"), ("content", "c"), "stop"]], ask(stream=True))
    assert len(got.writes) == 1
    assert len(got.events) == 5


PIECES: list[Piece] = [
    Text('x "\n\u2028é🙂\x00place\x00'),
    Thought("hm"),
    CallStarted(1, "call_1", "f"),
    CallArguments(1, '{"a'),
]


@pytest.mark.parametrize("piece", PIECES)
def test_a_chunk_that_was_filled_in_is_the_chunk_that_would_be_encoded(piece: Piece):
    name = 'odd "\x00place\x00"/model'
    data = ChunkEncoder("chatcmpl-1", 7, name).pieces([piece])
    (event,) = sse.Parser().feed(data)
    chunk = msgspec.json.decode(event.data, type=ChatCompletionChunk)
    assert sse.encode(msgspec.json.encode(chunk)) == data
    if isinstance(piece, Text):
        delta = ChoiceDelta(content=piece.text)
        assert chunk == ChatCompletionChunk("chatcmpl-1", 7, name, [ChunkChoice(0, delta)])


# headers


async def test_parameters_without_effect_are_listed():
    got = await _run(HELLO, ask(user="u", store=True, tool_choice="auto", stream_options={}))
    assert got.headers["x-cortex-ignored"] == "store, user, tool_choice, stream_options"


@pytest.mark.parametrize(
    ("started", "said"),
    [
        (ipc.Started(1, 9, 6, "live"), "reused=6 computed=3 source=live"),
        (ipc.Started(1, 9, 6, "host", "unused"), "reused=6 computed=3 source=host"),
        (ipc.Started(1, 9, 0, "none", "evicted"), "reused=0 computed=9 source=none miss=evicted"),
        (
            ipc.Started(1, 9, 0, "none", "too short, é\r\n"),
            "reused=0 computed=9 source=none miss=too-short-",
        ),
    ],
)
def test_the_cache_header_says_where_the_prefix_came_from_or_why_there_was_none(
    started: ipc.Started, said: str
):
    assert cache_header(started).decode() == said


async def test_caller_and_priority_reach_the_worker():
    registry = PlayedRegistry(HELLO)
    headers = {"x-cortex-priority": "batch", "x-cortex-caller": "key-1"}
    await Exchanged(registry, ask(), headers=headers).run()
    assert (registry.generate.caller, registry.generate.priority) == ("key-1", "batch")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_priority_that_is_none_is_refused_by_name(stream: bool):
    got = await _run(HELLO, ask(stream=stream), headers={"x-cortex-priority": "urgent"})
    assert (got.status, got.json["error"]["param"]) == (400, "x-cortex-priority")


# errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        ({"model": "m"}, 400, "invalid_request"),
        (ask(frobnicate=1), 400, "unsupported_parameter"),
        (ask() | {"model": "other"}, 404, "model_not_found"),
        (ask(chat_template_kwargs={"tools": 1}), 400, "invalid_request"),
    ],
)
async def test_a_refusal_has_status_and_envelope(body, status, code, stream):
    if isinstance(body, dict):
        body = body | {"stream": stream}
    got = await _run(HELLO, body)
    assert (got.status, got.json["error"]["code"]) == (status, code)
    assert got.headers["content-type"] == "application/json"
    assert got.is_complete


@pytest.mark.parametrize("depth", [100, 400, 800, 900, 950, 990, 5000])
async def test_deep_nesting_is_never_our_fault(depth: int):
    extra = b'"x": ' + b"[" * depth + b"]" * depth
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hi", ' + extra + b"}]}"
    got = await _run(HELLO, body)
    assert got.status in (200, 400, 422)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_before_the_first_byte_has_its_status(stream: bool):
    fault = Fault("context_length_exceeded", "9,000 tokens do not fit in 4,096")
    got = await _run([[fault]], ask(stream=stream))
    assert (got.status, got.json["error"]["code"]) == (400, "context_length_exceeded")


async def test_an_unavailable_model_says_when_to_come_back():
    got = await _run([[Fault("no_capacity", "full", retry_after_s=3)]], ask())
    assert (got.status, got.headers["retry-after"]) == (503, "3")


async def test_a_fault_in_mid_stream_is_an_event_and_no_end_mark():
    script: Script = [*HELLO[:2], [Fault("upstream_failed", "the worker died")]]
    got = await _run(script, ask(stream=True))
    assert got.status == 200
    assert got.events[-1]["error"]["code"] == "upstream_failed"
    assert b"[DONE]" not in got.text
    assert got.is_complete


async def test_a_fault_in_a_whole_answer_is_its_status():
    got = await _run([*HELLO[:2], [Fault("upstream_failed", "the worker died")]], ask())
    assert got.status == 502


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancel_that_nobody_asked_for_is_no_clean_end(stream: bool):
    got = await _run([*HELLO[:2], ["cancelled"]], ask(stream=stream))
    assert b"upstream_failed" in got.text
    assert b"[DONE]" not in got.text


async def test_a_bug_is_a_500_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, caplog):
    def broken(self: PlayedRegistry, model: str) -> ipc.ModelInfo:
        raise KeyError("secret")

    monkeypatch.setattr(PlayedRegistry, "info", broken)
    got = await _run(HELLO, ask())
    assert (got.status, got.json["error"]["code"]) == (500, "internal_error")
    assert "secret" not in got.text.decode()
    assert "secret" in caplog.text


# silence


async def test_silence_opens_the_stream_and_keeps_it_alive():
    registry = PlayedRegistry()
    exchanged = Exchanged(registry, ask(stream=True), silence_s=0.02, keep_alive_s=0.01)
    running = asyncio.create_task(exchanged.run())
    await exchanged.until(sse.KEEP_ALIVE * 2)
    assert exchanged.status == 200
    assert "x-cortex-cache" not in exchanged.headers
    assert exchanged.deltas == [{"role": "assistant", "content": ""}]
    registry.step(1, "started", ("content", "hi"))
    await exchanged.until(b'"hi"')
    registry.step(1, "stop")
    await asyncio.wait_for(running, 10)
    assert [delta.get("role") for delta in exchanged.deltas].count("assistant") == 1
    assert exchanged.events[-1] == "[DONE]"


async def test_an_error_after_silence_is_an_event():
    registry = PlayedRegistry()
    exchanged = Exchanged(registry, ask(stream=True), silence_s=0.01, keep_alive_s=0.01)
    running = asyncio.create_task(exchanged.run())
    await exchanged.until(sse.KEEP_ALIVE)
    registry.step(1, Fault("no_capacity", "gone"))
    await asyncio.wait_for(running, 10)
    assert exchanged.events[-1]["error"]["code"] == "no_capacity"
    assert exchanged.is_complete


async def test_a_lively_stream_has_no_keep_alive():
    got = await _run(HELLO, ask(stream=True), silence_s=5, keep_alive_s=1)
    assert b"keep-alive" not in got.text


# the outcome


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (HELLO, "ok"),
        ([[Fault("no_capacity", "full")]], "rejected"),
        ([[Fault("upstream_failed", "dead")]], "upstream_failed"),
        ([[Fault("stalled", "hung")]], "stalled"),
    ],
)
async def test_every_request_ends_in_one_outcome(script, told, caplog):
    with caplog.at_level("INFO", logger="neuron.routes.exchange"):
        await _run(script, ask())
    (record,) = caplog.records
    assert record.__dict__["facts"]["kind"] == told


# the route


async def test_the_route_is_mounted():
    registry = PlayedRegistry(HELLO)
    app = Starlette(routes=routes(registry, NeuronConfig()))
    got = await Exchanged(registry, ask(), endpoint=app).run()
    assert got.json["choices"][0]["message"]["content"] == "Hello"

"""Several choices, and log-probabilities: whole answers and streams say the same."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from cortex_core.config.neuron import NeuronConfig
from cortex_core.errors import Fault, RateLimitExceeded
from cortex_core.outcome import Outcome, Usage
from cortex_core.wire import ipc
from neuron.routes.chat import ChatEndpoint
from neuron.routes.completions import CompletionEndpoint
from tests.unit.chat.played import Exchanged, ask
from tests.unit.neuron.told import ToldRegistry

COMPLETION = {"model": "m", "prompt": "hi"}
A = ipc.TokenScore(b"Hel", -0.5, [(b"Hel", -0.5), (b"By", -1.0)])
B = ipc.TokenScore(b"lo", -0.25, [(b"lo", -0.25)])


class Asked:
    """An exchange under way."""

    def __init__(self, body: dict[str, Any], kind: Any = ChatEndpoint) -> None:
        self.registry = ToldRegistry()
        self.outcomes: list[Outcome] = []
        endpoint = kind(self.registry, NeuronConfig(), self.outcomes.append)
        self.exchanged = Exchanged(self.registry, body, endpoint=endpoint)  # pyright: ignore
        self._task = asyncio.create_task(self.exchanged.run())

    async def done(self) -> Exchanged:
        return await asyncio.wait_for(self._task, 10)

    async def generates(self, count: int) -> list[ipc.Generate]:
        asks = await self.registry.asked(count)
        return [ask for ask in asks if isinstance(ask, ipc.Generate)]


def by_choice(got: Exchanged) -> dict[int, list[Any]]:
    choices: dict[int, list[Any]] = {}
    for event in got.events:
        for choice in event["choices"] if event != "[DONE]" else ():
            choices.setdefault(choice["index"], []).append(choice)
    return choices


# n


@pytest.mark.parametrize("kind", [ChatEndpoint, CompletionEndpoint])
async def test_each_choice_is_a_request_of_its_own_with_a_seed_of_its_own(kind: Any):
    body = ask() if kind is ChatEndpoint else COMPLETION
    asked = Asked(body | {"n": 3, "seed": 40}, kind)
    generates = await asked.generates(3)
    assert [one.sampling.seed for one in generates] == [40, 41, 42]
    assert len({str(one.prompt) for one in generates}) == 1
    for one in generates:
        asked.registry.finish(one)
    await asked.done()


async def test_without_a_seed_none_is_made_up():
    asked = Asked(ask(n=2))
    generates = await asked.generates(2)
    assert [one.sampling.seed for one in generates] == [None, None]
    asked.exchanged.leave.set()
    await asked.done()


@pytest.mark.parametrize("kind", [ChatEndpoint, CompletionEndpoint])
async def test_a_prompt_is_counted_once_and_what_was_written_each_time(kind: Any):
    body = ask() if kind is ChatEndpoint else COMPLETION | {"prompt": ["a", "b"]}
    asked = Asked(body | {"n": 2}, kind)
    count = 2 if kind is ChatEndpoint else 4
    for index, one in enumerate(await asked.generates(count)):
        asked.registry.start(one, 9, index % 2 * 8)
        asked.registry.finish(one, Usage(9, index % 2 * 8, 3, 1))
    usage = (await asked.done()).json["usage"]
    prompts = count // 2
    assert usage["prompt_tokens"] == 9 * prompts
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["completion_tokens"] == 3 * count
    assert usage["completion_tokens_details"]["reasoning_tokens"] == count
    assert asked.outcomes[0].usage == Usage(9 * prompts, 0, 3 * count, count)


async def test_choices_of_a_stream_are_told_apart_by_their_index():
    asked = Asked(ask(n=2, stream=True, stream_options={"include_usage": True}))
    one, two = await asked.generates(2)
    asked.registry.say(two, "B")
    await asked.exchanged.until(b'"B"')
    asked.registry.say(one, "A")
    asked.registry.finish(two, reason="length")
    await asked.exchanged.until(b'"length"')
    assert b"[DONE]" not in asked.exchanged.text
    asked.registry.say(one, "a")
    asked.registry.finish(one)
    got = await asked.done()
    choices = by_choice(got)
    for index, text, end in ((0, "Aa", "stop"), (1, "B", "length")):
        deltas = [choice["delta"] for choice in choices[index]]
        assert deltas[0]["role"] == "assistant"
        assert "".join(delta.get("content", "") for delta in deltas) == text
        assert [c["finish_reason"] for c in choices[index] if c["finish_reason"]] == [end]
    *_, usage, done = got.events
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 4
    assert len({event["id"] for event in got.events[:-1]}) == 1


async def test_whole_choices_come_in_the_order_of_their_index():
    asked = Asked(ask(n=2, tools=[{"type": "function", "function": {"name": "add"}}]))
    one, two = await asked.generates(2)
    asked.registry.say(two, '<tool_call>{"name": "add", "arguments": {}}</tool_call>')
    asked.registry.finish(two)
    asked.registry.say(one, "A")
    asked.registry.finish(one)
    first, second = (await asked.done()).json["choices"]
    assert (first["index"], first["message"]["content"], first["finish_reason"]) == (0, "A", "stop")
    assert (second["index"], second["finish_reason"]) == (1, "tool_calls")


async def test_one_choice_that_fails_ends_the_request_and_the_others():
    asked = Asked(ask(n=3))
    one, two, three = await asked.generates(3)
    asked.registry.finish(one)
    asked.registry.fail(two, Fault("upstream_failed", "broken"))
    got = await asked.done()
    assert got.status == 502
    assert asked.registry.cancelled == [three.request]


async def test_choices_that_fail_together_are_one_failure_and_no_complaint():
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    asked = Asked(ask(n=3))
    for one in await asked.generates(3):
        asked.registry.fail(one, Fault("invalid_request", "the prompt has no tokens"))
    assert (await asked.done()).status == 400
    del asked
    gc.collect()  # which is when nobody will ask any more what a task came to
    assert not complaints


async def test_who_leaves_withdraws_every_choice():
    asked = Asked(ask(n=2, stream=True))
    generates = await asked.generates(2)
    asked.exchanged.leave.set()
    await asked.done()
    assert sorted(asked.registry.cancelled) == [one.request for one in generates]


async def test_a_choice_there_is_no_room_for_takes_the_others_along():
    asked = Asked(ask(n=2))
    asked.registry.refusals = [None, RateLimitExceeded("too many")]
    got = await asked.done()
    assert got.status == 429
    assert len(asked.registry.cancelled) == 1


# log-probabilities


@pytest.mark.parametrize(
    ("more", "wanted"),
    [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 4}, 4)],
)
async def test_only_who_asks_for_scores_has_them_computed(more: Any, wanted: int | None):
    asked = Asked(ask(**more))
    (one,) = await asked.generates(1)
    assert one.top_logprobs == wanted
    asked.registry.say(one, "x")
    asked.registry.finish(one)
    (choice,) = (await asked.done()).json["choices"]
    assert ("logprobs" in choice) == (wanted is not None)


async def _chat(stream: bool, *said: tuple[str, list[ipc.TokenScore]], **more: Any) -> Any:
    """The content and the scores a client gets."""
    asked = Asked(ask(logprobs=True, top_logprobs=2, stream=stream, **more))
    (one,) = await asked.generates(1)
    for text, scores in said:
        asked.registry.say(one, text, "content", scores)
        for _ in range(4):
            await asyncio.sleep(0)
    asked.registry.finish(one)
    got = await asked.done()
    if not stream:
        (choice,) = got.json["choices"]
        return choice["message"]["content"], choice["logprobs"]["content"]
    choices = by_choice(got)[0]
    content = "".join(choice["delta"].get("content", "") for choice in choices)
    scored = [choice["logprobs"]["content"] for choice in choices if "logprobs" in choice]
    return content or None, [score for scores in scored for score in scores]


async def test_a_stream_and_a_whole_answer_tell_the_same_scores():
    said = (("Hel", [A]), ("lo", [B]))
    whole, streamed = await _chat(False, *said), await _chat(True, *said)
    assert whole == streamed
    content, scores = whole
    assert content == "Hello"
    assert [score["token"] for score in scores] == ["Hel", "lo"]
    assert [top["token"] for top in scores[0]["top_logprobs"]] == ["Hel", "By"]


async def test_tokens_of_a_call_are_scored_too():
    call = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    tools = [{"type": "function", "function": {"name": "add"}}]
    said = ((call[:20], [A]), (call[20:], [B]))
    for stream in (False, True):
        content, scores = await _chat(stream, *said, tools=tools)
        assert content is None
        assert [score["token"] for score in scores] == ["Hel", "lo"]


async def test_an_answer_without_content_has_no_scores():
    assert await _chat(False) == ("", [])


async def test_a_completion_tells_where_its_tokens_begin():
    parts: list[Any] = []
    for stream in (False, True):
        asked = Asked(COMPLETION | {"logprobs": 2, "stream": stream}, CompletionEndpoint)
        (one,) = await asked.generates(1)
        assert one.top_logprobs == 2
        for text, score in (("Hel", A), ("lo", B)):
            asked.registry.say(one, text, "content", [score])
            for _ in range(4):
                await asyncio.sleep(0)
        asked.registry.finish(one)
        got = await asked.done()
        choices = by_choice(got)[0] if stream else got.json["choices"]
        told: dict[str, list[Any]] = {}
        for choice in choices:
            for name, values in (choice["logprobs"] or {}).items():
                told.setdefault(name, []).extend(values)
        parts.append(told)
    assert parts[0] == parts[1]
    assert parts[0] == {
        "tokens": ["Hel", "lo"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"Hel": -0.5, "By": -1.0}, {"lo": -0.25}],
        "text_offset": [0, 3],
    }


async def test_deltas_that_pile_up_keep_their_scores():
    asked = Asked(ask(logprobs=True))
    (one,) = await asked.generates(1)
    asked.registry.say(one, "Hel", "content", [A])
    asked.registry.say(one, "lo", "content", [B])
    asked.registry.finish(one)
    (choice,) = (await asked.done()).json["choices"]
    assert [score["token"] for score in choice["logprobs"]["content"]] == ["Hel", "lo"]

"""Several prompts, several choices, one request: they come as they come and end together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cortex_core.envelopes.openai_completions import CompletionRequest
from cortex_core.errors import (
    CortexError,
    Fault,
    ModelNotFound,
    RateLimitExceeded,
    UpstreamFailed,
)
from cortex_core.outcome import Usage
from cortex_core.wire import ipc
from neuron.completion import ChoicePiece, ChoiceStreams, CompletionService
from neuron.precedence import Precedence
from tests.unit.neuron.told import ToldRegistry


def _request(prompt: Any = "hi", **more: Any) -> CompletionRequest:
    return CompletionRequest("m", prompt, **more)


async def _all(choices: ChoiceStreams) -> list[ChoicePiece]:
    pieces = []
    while not choices.is_ended:
        pieces += await choices.read()
    return pieces


async def _answer(registry: ToldRegistry, request: CompletionRequest) -> list[ChoicePiece]:
    async with await CompletionService(registry).open(request) as choices:
        return await _all(choices)


async def test_everything_the_request_says_reaches_the_worker():
    registry = ToldRegistry()
    request = _request(
        max_tokens=7, temperature=0.5, seed=3, stop=["a", "b"], suffix="end", top_k=2
    )
    async with await CompletionService(registry).open(request, Precedence("me", "batch")):
        (asked,) = registry.asks
    assert isinstance(asked, ipc.Generate)
    assert asked.prompt == "hi"
    assert (asked.sampling.temperature, asked.sampling.seed, asked.sampling.top_k) == (0.5, 3, 2)
    assert (asked.max_tokens, asked.stop, asked.suffix) == (7, ("a", "b"), "end")
    assert (asked.caller, asked.priority, asked.is_raw) == ("me", "batch", True)


async def test_reasoning_and_markers_are_text_like_any_other():
    registry = ToldRegistry()
    async with await CompletionService(registry).open(_request()) as choices:
        (asked,) = registry.asks
        registry.start(asked)
        for channel, text in (("marker", "<think>"), ("reasoning", "\nhm\n"), ("content", "x")):
            registry.say(asked, text, channel)  # pyright: ignore[reportArgumentType]
        registry.finish(asked)
        pieces = await _all(choices)
    assert "".join(piece.text for piece in pieces) == "<think>\nhm\nx"


async def test_choices_come_in_any_order_and_keep_their_index():
    registry = ToldRegistry()
    async with await CompletionService(registry).open(_request(["a", "b", "c"])) as choices:
        one, two, three = registry.asks
        registry.say(three, "C")
        registry.finish(three, reason="length")
        pieces = await choices.read()
        assert pieces == [ChoicePiece(2, "C", "length")]
        registry.say(one, "A")
        registry.say(two, "B")
        registry.finish(two)
        registry.finish(one)
        pieces += await _all(choices)
    texts = ["".join(p.text for p in pieces if p.index == index) for index in range(3)]
    assert texts == ["A", "B", "C"]
    ends = {p.index: p.finish_reason for p in pieces if p.finish_reason}
    assert ends == {0: "stop", 1: "stop", 2: "length"}
    assert not registry.cancelled


async def test_usage_and_cache_are_of_all_choices_together():
    registry = ToldRegistry()
    async with await CompletionService(registry).open(_request(["a", "b"])) as choices:
        for asked, cached in zip(registry.asks, (3, 0), strict=True):
            registry.start(asked, 5, cached)
            registry.finish(asked, Usage(5, cached, 2, 0))
        await _all(choices)
        assert choices.usage == Usage(10, 3, 4, 0)
        assert choices.started is not None
        assert (choices.started.prompt, choices.started.cached) == (10, 3)


async def test_one_choice_that_fails_ends_the_request_and_the_others():
    registry = ToldRegistry()
    answer = asyncio.create_task(_answer(registry, _request(["a", "b", "c"])))
    one, two, three = await registry.asked(3)
    registry.finish(one)
    registry.fail(two, Fault("upstream_failed", "broken"))
    with pytest.raises(UpstreamFailed, match="broken"):
        await answer
    assert registry.cancelled == [three.request]


async def test_two_choices_that_fail_at_once_are_one_error():
    registry = ToldRegistry()
    answer = asyncio.create_task(_answer(registry, _request(["a", "b"])))
    for asked in await registry.asked(2):
        registry.fail(asked, Fault("upstream_failed", "broken"))
    with pytest.raises(UpstreamFailed, match="broken"):
        await answer


async def test_who_leaves_while_waiting_withdraws_every_choice():
    registry = ToldRegistry()
    task = asyncio.create_task(_answer(registry, _request(["a", "b"])))
    await registry.asked(2)
    registry.say(registry.asks[0], "x")
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert sorted(registry.cancelled) == [asked.request for asked in registry.asks]


async def test_a_request_refused_halfway_leaves_nothing_in_flight():
    registry = ToldRegistry()
    registry.refusals = [None, RateLimitExceeded("too many")]
    with pytest.raises(RateLimitExceeded):
        await CompletionService(registry).open(_request(["a", "b"]))
    assert registry.cancelled == [registry.asks[0].request]


async def test_a_worker_that_gives_up_by_itself_is_no_clean_end():
    registry = ToldRegistry()
    answer = asyncio.create_task(_answer(registry, _request()))
    (asked,) = await registry.asked()
    registry.finish(asked, reason="cancelled")
    with pytest.raises(UpstreamFailed, match="cancelled"):
        await answer


async def test_a_model_nobody_has_is_not_asked():
    registry = ToldRegistry()
    with pytest.raises(ModelNotFound):
        await CompletionService(registry).open(CompletionRequest("other", "hi", echo=True))
    assert registry.sent == []


# echo


async def test_an_echo_comes_before_the_first_text():
    registry = ToldRegistry()
    async with await CompletionService(registry).open(_request(["a", "b"], echo=True)) as choices:
        one, two = registry.asks
        registry.start(one)
        assert await choices.read() == [ChoicePiece(0, "a")]
        registry.say(two, "B")
        registry.finish(two)
        assert await choices.read() == [ChoicePiece(1, "bB", "stop")]


async def test_token_ids_are_echoed_as_the_worker_writes_them():
    registry = ToldRegistry()

    async def first_piece() -> list[ChoicePiece]:
        request = _request([[1, 2]], echo=True)
        async with await CompletionService(registry).open(request) as choices:
            return await choices.read()

    task = asyncio.create_task(first_piece())
    (asked,) = await registry.asked()
    assert isinstance(asked, ipc.Detokenize)
    assert asked.ids == b"\1\0\0\0\2\0\0\0"
    registry.reply(asked, ipc.Text("né".encode()[:-1]))
    _, generate = await registry.asked(2)
    assert isinstance(generate, ipc.Generate)
    assert generate.prompt == [1, 2]
    registry.start(generate)
    assert await task == [ChoicePiece(0, "n�")]


async def test_ids_that_cannot_be_echoed_are_not_generated_from():
    registry = ToldRegistry()
    task = asyncio.create_task(CompletionService(registry).open(_request([[1]], echo=True)))
    (asked,) = await registry.asked()
    registry.fail(asked, Fault("invalid_request", "1 is no token", "tokens"))
    with pytest.raises(CortexError, match="no token"):
        await task
    assert len(registry.asks) == 1

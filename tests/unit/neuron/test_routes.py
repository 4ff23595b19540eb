"""Completions, embeddings, reranking and tokens, write by write, over a worker that is told what
to say."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import pytest

from cortex_core.config.neuron import NeuronConfig
from cortex_core.errors import Fault
from cortex_core.outcome import Outcome, Usage
from cortex_core.wire import ipc, sse
from neuron.routes.completions import CompletionEndpoint
from neuron.routes.embeddings import EmbeddingEndpoint, RerankEndpoint
from neuron.routes.tokens import DetokenizeEndpoint, TokenizeEndpoint
from tests.unit.chat.played import Exchanged
from tests.unit.neuron.told import ToldRegistry

CONFIG = NeuronConfig()
COMPLETION = {"model": "m", "prompt": "hi"}
STREAM = COMPLETION | {"stream": True}
ENDPOINTS = {
    CompletionEndpoint: COMPLETION,
    EmbeddingEndpoint: {"model": "m", "input": "hi"},
    RerankEndpoint: {"model": "m", "query": "q", "documents": ["a", "b", "c"]},
    TokenizeEndpoint: {"model": "m", "content": "hi"},
    DetokenizeEndpoint: {"model": "m", "tokens": [1]},
}


class Asked:
    """An exchange under way."""

    def __init__(self, kind: Any, body: dict[str, Any], **more: Any) -> None:
        self.registry = ToldRegistry()
        self.outcomes: list[Outcome] = []
        endpoint = kind(self.registry, CONFIG, self.outcomes.append, **more)
        self.exchanged = Exchanged(self.registry, body, endpoint=endpoint)  # pyright: ignore
        self._task = asyncio.create_task(self.exchanged.run())

    async def done(self) -> Exchanged:
        return await asyncio.wait_for(self._task, 10)


@pytest.mark.parametrize(("kind", "body"), ENDPOINTS.items())
async def test_a_fault_of_the_worker_is_the_clients_answer(kind: Any, body: dict[str, Any]):
    asked = Asked(kind, body)
    (ask,) = await asked.registry.asked()
    asked.registry.fail(ask, Fault("context_length_exceeded", "too long", "input"))
    exchanged = await asked.done()
    assert exchanged.status == 400
    assert exchanged.json["error"]["code"] == "context_length_exceeded"
    assert exchanged.json["error"]["param"] == "input"
    (outcome,) = asked.outcomes
    assert (outcome.kind, outcome.code, outcome.model) == ("rejected", outcome.code, "m")


@pytest.mark.parametrize(("kind", "body"), ENDPOINTS.items())
async def test_a_client_who_leaves_withdraws_the_question(kind: Any, body: dict[str, Any]):
    asked = Asked(kind, body)
    (ask,) = await asked.registry.asked()
    asked.exchanged.leave.set()
    await asked.done()
    assert asked.registry.cancelled == [ask.request]
    assert [outcome.kind for outcome in asked.outcomes] == ["client_gone"]


@pytest.mark.parametrize(("kind", "body"), ENDPOINTS.items())
async def test_a_model_nobody_has_is_404(kind: Any, body: dict[str, Any]):
    exchanged = await Asked(kind, body | {"model": "x"}).done()
    assert exchanged.status == 404
    assert exchanged.json["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("kind", "body"), ENDPOINTS.items())
async def test_a_bug_is_a_500_that_gives_nothing_away(
    kind: Any, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    def broken(self: object, ask: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(ToldRegistry, "open", broken)
    exchanged = await Asked(kind, body).done()
    assert exchanged.status == 500
    assert b"secret" not in exchanged.text


@pytest.mark.parametrize("kind", [EmbeddingEndpoint, RerankEndpoint, TokenizeEndpoint])
async def test_an_end_without_an_answer_is_a_failure_of_the_worker(kind: Any):
    asked = Asked(kind, ENDPOINTS[kind])
    (ask,) = await asked.registry.asked()
    asked.registry.finish(ask)
    exchanged = await asked.done()
    assert exchanged.status == 502
    assert exchanged.json["error"]["code"] == "upstream_failed"


# completions


async def test_a_whole_completion():
    asked = Asked(CompletionEndpoint, COMPLETION | {"user": "u"})
    (ask,) = await asked.registry.asked()
    asked.registry.start(ask, 5, 3)
    asked.registry.say(ask, "Hel")
    asked.registry.say(ask, "lo")
    asked.registry.finish(ask, Usage(5, 3, 2, 0))
    exchanged = await asked.done()
    assert exchanged.headers["x-cortex-cache"] == "reused=3 computed=2 source=cache"
    assert exchanged.headers["x-cortex-ignored"] == "user"
    answer = exchanged.json
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 0
    assert answer == {
        "model": "m",
        "choices": [{"text": "Hello", "index": 0, "finish_reason": "stop", "logprobs": None}],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "object": "text_completion",
    }
    (outcome,) = asked.outcomes
    assert (outcome.kind, outcome.usage) == ("ok", Usage(5, 3, 2, 0))


async def test_a_stream_says_what_the_whole_answer_says():
    asked = Asked(
        CompletionEndpoint,
        STREAM | {"prompt": ["a", "b"], "stream_options": {"include_usage": True}},
    )
    one, two = await asked.registry.asked(2)
    for ask in (one, two):
        asked.registry.start(ask)
    asked.registry.say(two, "B")
    await asked.exchanged.until(b'"B"')
    asked.registry.say(one, "A")
    asked.registry.finish(one)
    asked.registry.finish(two, reason="length")
    exchanged = await asked.done()
    assert exchanged.headers["content-type"] == "text/event-stream"
    *chunks, last, done = exchanged.events
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 14
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    texts = ["".join(c["text"] for c in choices if c["index"] == index) for index in (0, 1)]
    assert texts == ["A", "B"]
    ends = {c["index"]: c["finish_reason"] for c in choices if c["finish_reason"]}
    assert ends == {0: "stop", 1: "length"}


async def test_a_stream_that_fails_ends_in_an_error_event_and_without_done():
    asked = Asked(CompletionEndpoint, STREAM)
    (ask,) = await asked.registry.asked()
    asked.registry.say(ask, "Hel")
    await asked.exchanged.until(b"Hel")
    asked.registry.fail(ask, Fault("upstream_failed", "the worker died"))
    exchanged = await asked.done()
    assert exchanged.is_complete
    assert exchanged.events[-1]["error"]["code"] == "upstream_failed"
    assert b"[DONE]" not in exchanged.text


async def test_a_silent_stream_gives_signs_of_life():
    asked = Asked(CompletionEndpoint, STREAM, silence_s=0.01, keep_alive_s=0.01)
    (ask,) = await asked.registry.asked()
    await asked.exchanged.until(sse.KEEP_ALIVE * 2)
    asked.registry.say(ask, "x")
    asked.registry.finish(ask)
    exchanged = await asked.done()
    assert exchanged.events[-1] == "[DONE]"


# embeddings


async def test_vectors_come_as_numbers():
    asked = Asked(EmbeddingEndpoint, {"model": "m", "input": [[3], [1, 2]], "dimensions": 2})
    (ask,) = await asked.registry.asked()
    assert isinstance(ask, ipc.Embed)
    assert (ask.inputs, ask.dimensions) == ([[3], [1, 2]], 2)
    asked.registry.reply(ask, ipc.Vectors(struct.pack("<4f", 1, 0, 0, -1), 2), Usage(9))
    exchanged = await asked.done()
    assert exchanged.json == {
        "data": [
            {"index": 0, "embedding": [1.0, 0.0], "object": "embedding"},
            {"index": 1, "embedding": [0.0, -1.0], "object": "embedding"},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "object": "list",
    }
    assert asked.outcomes[0].usage == Usage(9)


async def test_a_long_list_of_vectors_lets_others_have_the_loop():
    asked = Asked(EmbeddingEndpoint, {"model": "m", "input": ["a"] * 64})
    (ask,) = await asked.registry.asked()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    asked.registry.reply(ask, ipc.Vectors(bytes(4 * 4096 * 64), 4096))
    exchanged = await asked.done()
    other.cancel()
    assert len(exchanged.json["data"]) == 64
    assert turns > 10


# rerank


async def test_the_best_documents_come_first():
    asked = Asked(RerankEndpoint, ENDPOINTS[RerankEndpoint])
    (ask,) = await asked.registry.asked()
    assert isinstance(ask, ipc.Rank)
    assert (ask.query, ask.documents) == ("q", ["a", "b", "c"])
    asked.registry.reply(ask, ipc.Scores([0.5, 0.75, 0.5]), Usage(12))
    exchanged = await asked.done()
    assert exchanged.json == {
        "model": "m",
        "results": [
            {"index": 1, "relevance_score": 0.75},
            {"index": 0, "relevance_score": 0.5},
            {"index": 2, "relevance_score": 0.5},
        ],
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
    }


async def test_only_so_many_documents_come_back_and_their_texts_when_asked():
    body = ENDPOINTS[RerankEndpoint] | {"top_n": 1, "return_documents": True}
    asked = Asked(RerankEndpoint, body)
    (ask,) = await asked.registry.asked()
    asked.registry.reply(ask, ipc.Scores([0.0, 0.0, 0.25]))
    assert (await asked.done()).json["results"] == [
        {"index": 2, "relevance_score": 0.25, "document": {"text": "c"}}
    ]


async def test_a_score_of_zero_is_said():
    asked = Asked(RerankEndpoint, ENDPOINTS[RerankEndpoint] | {"documents": ["a"]})
    (ask,) = await asked.registry.asked()
    asked.registry.reply(ask, ipc.Scores([0.0]))
    assert (await asked.done()).json["results"] == [{"index": 0, "relevance_score": 0.0}]


# tokens


@pytest.mark.parametrize(
    ("body", "text", "ends", "parses"),
    [
        ({"content": "hi"}, "hi", "none", True),
        ({"content": "hi", "add_special": False}, "hi", "none", True),
        ({"content": "hi", "add_special": True}, "hi", "all", True),
        ({"content": "hi", "parse_special": False}, "hi", "none", False),
        ({"messages": [{"role": "user", "content": "hi"}]}, "<user>hi", "prompt", True),
        (
            {"messages": [{"role": "user", "content": "hi"}], "add_special": True},
            "<user>hi",
            "prompt",
            True,
        ),
        (
            {"messages": [{"role": "user", "content": "hi"}], "add_special": False},
            "<user>hi",
            "none",
            True,
        ),
    ],
)
async def test_what_is_tokenized(body: dict[str, Any], text: str, ends: str, parses: bool):
    asked = Asked(TokenizeEndpoint, {"model": "m"} | body)
    (ask,) = await asked.registry.asked()
    assert isinstance(ask, ipc.Tokenize)
    assert (ask.text, ask.ends, ask.parse_special) == (text, ends, parses)
    asked.registry.reply(ask, ipc.Tokens(ipc.pack_ids([4, 5])))
    assert (await asked.done()).json == {"count": 2, "tokens": [4, 5]}


async def test_tokens_come_with_their_pieces():
    asked = Asked(TokenizeEndpoint, {"model": "m", "content": "hi", "with_pieces": True})
    (ask,) = await asked.registry.asked()
    asked.registry.reply(ask, ipc.Tokens(ipc.pack_ids([4]), {4: b"hi"}))
    assert (await asked.done()).json["tokens"] == [{"id": 4, "piece": "hi"}]


async def test_text_comes_back_from_tokens():
    asked = Asked(DetokenizeEndpoint, {"model": "m", "tokens": [4, 5]})
    (ask,) = await asked.registry.asked()
    assert isinstance(ask, ipc.Detokenize)
    assert ask.ids == ipc.pack_ids([4, 5])
    asked.registry.reply(ask, ipc.Text("né".encode()))
    assert json.loads((await asked.done()).text) == {"content": "né"}

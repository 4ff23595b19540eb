"""Completions, embeddings, reranking and tokens on real models, through gateway and neuron: with
the official openai SDK where it knows the route, by plain HTTP where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import openai
import pytest

from tests.e2e.client import TINY, Answer, eventually, fetch
from tests.e2e.conftest import Stack, start_stack
from tools.make_gguf import PRESETS, BertShape, make_gguf

PROMPT = "<|im_start|>user\nWhat is the capital of Norway?<|im_end|>\n<|im_start|>assistant\n"
NO_THINKING = "<think>\n\n</think>\n\n"
ANSWER = "The capital of Norway is Oslo."
TEXTS = ["The cat sat on the mat.", "x", "one two three " * 30, "The cat sat on the mat."]


@dataclass(frozen=True)
class Models:
    stack: Stack
    embedder: str
    reranker: str
    filler: str
    """Has fill-in-the-middle tokens, and nothing to say."""

    async def post(self, path: str, model: str, **body: object) -> Answer:
        return await fetch("POST", self.stack.url + path, {"model": model} | body)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("models")
    shapes = {
        "embedder": BertShape(),
        "reranker": BertShape(pooling="rank"),
        "filler": PRESETS["toy"],
    }
    paths = {name: str(make_gguf(folder / f"{name}.gguf", s)) for name, s in shapes.items()}
    with start_stack(models=(TINY, *paths.values())) as stack:
        for model in (TINY, *paths.values()):
            asyncio.run(eventually(lambda model=model: stack.is_servable(model), model))
        yield Models(stack, **paths)


@pytest.fixture
def client(models: Models) -> Iterator[openai.OpenAI]:
    url = f"{models.stack.url}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        yield client


# completions


def test_a_completion_goes_on_where_the_prompt_ends(client: openai.OpenAI):
    answer = client.completions.create(
        model=TINY, prompt=PROMPT + NO_THINKING, max_tokens=100, temperature=0
    )
    assert answer.object == "text_completion"
    assert answer.choices[0].text == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 5


def test_raw_text_keeps_its_markers_and_a_chat_splits_them(client: openai.OpenAI):
    raw = client.completions.create(model=TINY, prompt=PROMPT, max_tokens=100, temperature=0)
    text = raw.choices[0].text
    assert text.startswith("<think>")
    assert text.endswith(ANSWER)
    chat = client.chat.completions.create(
        model=TINY,
        messages=[{"role": "user", "content": "What is the capital of Norway?"}],
        temperature=0,
    )
    assert chat.usage
    assert raw.usage
    assert chat.choices[0].message.content == ANSWER
    assert chat.usage.completion_tokens == raw.usage.completion_tokens


def test_a_completion_has_16_tokens_unless_more_are_asked_for(client: openai.OpenAI):
    answer = client.completions.create(
        model=TINY, prompt=PROMPT, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI):
    prompts = [PROMPT, PROMPT + NO_THINKING]
    whole = client.completions.create(model=TINY, prompt=prompts, max_tokens=60, temperature=0)
    chunks = list(
        client.completions.create(
            model=TINY,
            prompt=prompts,
            max_tokens=60,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens
    assert len(chunks) > 10
    for choice in whole.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert parts[-1].finish_reason == choice.finish_reason
    assert [choice.index for choice in whole.choices] == [0, 1]


async def test_token_ids_are_a_prompt_and_can_be_echoed(models: Models):
    tokens = (await models.post("/tokenize", TINY, content=PROMPT)).body["tokens"]
    by_text = await models.post("/v1/completions", TINY, prompt=PROMPT, temperature=0, echo=True)
    by_ids = await models.post("/v1/completions", TINY, prompt=[tokens], temperature=0, echo=True)
    assert by_text.body["choices"] == by_ids.body["choices"]
    assert by_text.body["choices"][0]["text"].startswith(PROMPT)
    assert by_text.body["usage"]["prompt_tokens"] == len(tokens)


async def test_stop_strings_end_the_text_even_inside_reasoning(models: Models):
    answer = await models.post(
        "/v1/completions", TINY, prompt=PROMPT, max_tokens=60, temperature=0, stop=["capital"]
    )
    (choice,) = answer.body["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["text"].startswith("<think>")
    assert "capital" not in choice["text"]


async def test_a_seed_makes_a_draw_come_again(models: Models):
    async def text(seed: int) -> str:
        answer = await models.post(
            "/v1/completions", models.filler, prompt="x", temperature=1, seed=seed
        )
        return answer.body["choices"][0]["text"]

    assert await text(1) == await text(1)
    assert await text(1) != await text(2)


async def test_the_middle_is_filled_in_between_prompt_and_suffix(models: Models):
    """As composed by hand: each behind its own token, and what the code writes is text."""

    async def tokens(text: str, parse: bool = True) -> list[int]:
        answer = await models.post("/tokenize", models.filler, content=text, parse_special=parse)
        return answer.body["tokens"]

    filled = await models.post(
        "/v1/completions",
        models.filler,
        prompt="def f(<|im_end|>",
        suffix="return x",
        temperature=0,
    )
    by_hand = [
        *await tokens("<|fim_prefix|>"),
        *await tokens("def f(<|im_end|>", parse=False),
        *await tokens("<|fim_suffix|>"),
        *await tokens("return x"),
        *await tokens("<|fim_middle|>"),
    ]
    expected = await models.post("/v1/completions", models.filler, prompt=by_hand, temperature=0)
    assert filled.body["choices"] == expected.body["choices"]
    assert filled.body["usage"]["prompt_tokens"] == len(by_hand)


async def test_a_model_that_cannot_fill_in_names_the_suffix(models: Models):
    answer = await models.post("/v1/completions", TINY, prompt="x", suffix="y")
    assert answer.status == 400
    assert answer.body["error"]["param"] == "suffix"


@pytest.mark.parametrize(("prompt", "param"), [([5, 99_999], "prompt"), ([[5], [-1]], "prompt")])
async def test_ids_that_are_no_tokens_are_named(models: Models, prompt: object, param: str):
    answer = await models.post("/v1/completions", TINY, prompt=prompt)
    assert answer.status == 400
    assert answer.body["error"]["param"].startswith(param)


# embeddings


def _cosine(one: list[float], two: list[float]) -> float:
    return float(np.dot(one, two) / np.linalg.norm(one) / np.linalg.norm(two))


def test_a_batch_of_mixed_lengths_is_the_same_one_by_one(models: Models, client: openai.OpenAI):
    batch = client.embeddings.create(model=models.embedder, input=TEXTS)
    assert [item.index for item in batch.data] == [0, 1, 2, 3]
    vectors = [item.embedding for item in batch.data]
    for text, vector in zip(TEXTS, vectors, strict=True):
        alone = client.embeddings.create(model=models.embedder, input=text).data[0].embedding
        assert np.allclose(alone, vector, atol=2e-3)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert _cosine(vectors[0], vectors[3]) == pytest.approx(1, abs=1e-4)
    assert _cosine(vectors[0], vectors[1]) < 0.99
    assert batch.usage.prompt_tokens == batch.usage.total_tokens > 40


def test_base64_which_the_sdk_asks_for_holds_the_same_numbers(
    models: Models, client: openai.OpenAI
):
    by_default = client.embeddings.create(model=models.embedder, input="hello")
    as_floats = client.embeddings.create(
        model=models.embedder, input="hello", encoding_format="float"
    )
    assert np.array_equal(by_default.data[0].embedding, as_floats.data[0].embedding)
    assert len(as_floats.data[0].embedding) == 64


def test_dimensions_cut_and_normalise(models: Models, client: openai.OpenAI):
    whole = client.embeddings.create(model=models.embedder, input="hello").data[0].embedding
    cut = client.embeddings.create(model=models.embedder, input="hello", dimensions=16)
    assert len(cut.data[0].embedding) == 16
    assert np.linalg.norm(cut.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert _cosine(cut.data[0].embedding, whole[:16]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"input": "x", "dimensions": 65}, "invalid_request", "dimensions"),
        ({"input": "a " * 600}, "context_length_exceeded", "input"),
        ({"input": ["x", "a " * 600]}, "context_length_exceeded", "input[1]"),
        ({"input": ""}, "invalid_request", "input"),
    ],
)
async def test_what_cannot_be_embedded_is_named(
    models: Models, more: dict[str, object], code: str, param: str
):
    answer = await models.post("/v1/embeddings", models.embedder, **more)
    assert answer.status == 400
    assert (answer.body["error"]["code"], answer.body["error"]["param"]) == (code, param)


async def test_each_model_does_what_it_is_for_and_says_so(models: Models):
    chat = {"messages": [{"role": "user", "content": "x"}]}
    asked = [
        ("/v1/embeddings", TINY, {"input": "x"}),
        ("/v1/embeddings", models.reranker, {"input": "x"}),
        ("/v1/rerank", models.embedder, {"query": "x", "documents": ["y"]}),
        ("/v1/rerank", TINY, {"query": "x", "documents": ["y"]}),
        ("/v1/chat/completions", models.embedder, chat),
        ("/v1/completions", models.reranker, {"prompt": "x"}),
    ]
    for path, model, body in asked:
        answer = await models.post(path, model, **body)
        assert answer.status == 400, path
        assert answer.body["error"]["param"] == "model"
        assert repr(model) in answer.body["error"]["message"]


# rerank


async def test_documents_come_back_by_relevance(models: Models):
    documents: list[object] = [*TEXTS[:3], {"text": "Dogs bark."}]
    answer = await models.post(
        "/v1/rerank", models.reranker, query="where is the cat", documents=documents
    )
    results = answer.body["results"]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert sorted(result["index"] for result in results) == [0, 1, 2, 3]
    assert answer.body["usage"]["total_tokens"] > 40
    best = await models.post(
        "/v1/rerank",
        models.reranker,
        query="where is the cat",
        documents=documents,
        top_n=1,
        return_documents=True,
    )
    (top,) = best.body["results"]
    assert top["index"] == results[0]["index"]
    assert top["relevance_score"] == pytest.approx(scores[0], abs=2e-3)
    given = documents[top["index"]]
    assert top["document"] == (given if isinstance(given, dict) else {"text": given})


# tokens


@pytest.mark.parametrize("text", ["Zürich, 東京! 👍🏽👩‍👩‍👧 Привет", "", "  two  spaces\n"])
async def test_text_comes_back_from_its_tokens(models: Models, text: str):
    tokens = await models.post("/tokenize", TINY, content=text)
    assert tokens.body["count"] == len(tokens.body["tokens"])
    back = await models.post("/detokenize", TINY, tokens=tokens.body["tokens"])
    assert back.body == {"content": text}


async def test_messages_are_the_tokens_of_the_chat_they_make(models: Models):
    messages = [{"role": "user", "content": "What is the capital of Norway?"}]
    counted = await models.post("/tokenize", TINY, messages=messages, with_pieces=True)
    chat = await models.post("/v1/chat/completions", TINY, messages=messages, temperature=0)
    assert counted.body["count"] == chat.body["usage"]["prompt_tokens"]
    pieces = [token["piece"] for token in counted.body["tokens"]]
    assert "".join(pieces) == PROMPT


async def test_an_embedding_model_has_tokens_too(models: Models):
    bare = await models.post("/tokenize", models.embedder, content="hello")
    whole = await models.post("/tokenize", models.embedder, content="hello", add_special=True)
    assert whole.body["tokens"][1:-1] == bare.body["tokens"]
    back = await models.post("/detokenize", models.embedder, tokens=whole.body["tokens"])
    assert back.body["content"].startswith("[CLS]")


async def test_an_id_that_is_no_token_is_named(models: Models):
    answer = await models.post("/detokenize", TINY, tokens=[1, 99_999])
    assert answer.status == 400
    assert answer.body["error"]["param"] == "tokens"
    assert "99999 is no token" in answer.body["error"]["message"]

"""Completions, embeddings, reranking and tokens: what a body may say, and who is named if not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cortex_core.envelopes.openai_completions import MOST_PROMPTS, decode_completion_request
from cortex_core.envelopes.openai_embeddings import MOST_INPUTS, decode_embedding_request
from cortex_core.envelopes.rerank import MOST_DOCUMENTS, decode_rerank_request
from cortex_core.envelopes.tokens import decode_detokenize_request, decode_tokenize_request
from cortex_core.errors import InvalidRequest, RequestError, UnsupportedParameter

Decode = Callable[[bytes], tuple[Any, list[str]]]

COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}
EMBEDDING: dict[str, Any] = {"model": "m", "input": "hi"}
RERANK: dict[str, Any] = {"model": "m", "query": "q", "documents": ["d"]}
TOKENIZE: dict[str, Any] = {"model": "m", "content": "hi"}
DETOKENIZE: dict[str, Any] = {"model": "m", "tokens": [1]}
ROUTES: list[tuple[Decode, dict[str, Any]]] = [
    (decode_completion_request, COMPLETION),
    (decode_embedding_request, EMBEDDING),
    (decode_rerank_request, RERANK),
    (decode_tokenize_request, TOKENIZE),
    (decode_detokenize_request, DETOKENIZE),
]


def _decoded(decode: Decode, body: dict[str, Any], **more: Any) -> tuple[Any, list[str]]:
    return decode(msgspec.json.encode(body | more))


@pytest.mark.parametrize(("decode", "body"), ROUTES)
def test_an_unknown_parameter_is_refused_by_name(decode: Decode, body: dict[str, Any]):
    with pytest.raises(UnsupportedParameter, match="'modle'; did you mean 'model'") as refused:
        _decoded(decode, body, modle="x")
    assert refused.value.param == "modle"


@pytest.mark.parametrize(("decode", "body"), ROUTES)
@pytest.mark.parametrize("model", ["", 7])
def test_a_model_without_a_name_is_refused(decode: Decode, body: dict[str, Any], model: Any):
    with pytest.raises(InvalidRequest) as refused:
        _decoded(decode, body, model=model)
    assert refused.value.param == "model"


def test_a_whole_number_may_be_written_as_any():
    request, _ = _decoded(decode_completion_request, COMPLETION, max_tokens=5.0, temperature=1.0)
    assert (request.max_tokens, request.temperature) == (5, 1.0)
    request, _ = _decoded(decode_embedding_request, EMBEDDING, input=[[1.0, 2]])
    assert request.inputs == [[1, 2]]
    with pytest.raises(InvalidRequest, match=r"max_tokens: expected .*, got `float`"):
        _decoded(decode_completion_request, COMPLETION, max_tokens=5.5, n=1.0)
    with pytest.raises(InvalidRequest, match=r"best_of: expected .*, got `str`"):
        _decoded(decode_completion_request, COMPLETION, best_of="1", n=1.0)


@pytest.mark.parametrize(("decode", "body"), ROUTES)
def test_whatever_is_missing_is_named(decode: Decode, body: dict[str, Any]):
    for name in body:
        with pytest.raises(InvalidRequest) as refused:
            _decoded(decode, {key: value for key, value in body.items() if key != name})
        assert refused.value.param == name


@pytest.mark.parametrize(
    ("decode", "name"), [(decode_completion_request, "prompt"), (decode_embedding_request, "input")]
)
@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("one", ["one"]),
        (["one"], ["one"]),
        (["one", "two"], ["one", "two"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_texts_come_as_strings_or_token_ids_one_or_many(
    decode: Decode, name: str, given: Any, texts: list[Any]
):
    request, _ = _decoded(decode, {"model": "m", name: given})
    assert getattr(request, f"{name}s") == texts


@pytest.mark.parametrize(
    ("decode", "name"), [(decode_completion_request, "prompt"), (decode_embedding_request, "input")]
)
@pytest.mark.parametrize(
    "given", [[], ["one", 2], ["one", [2]], [1, [2]], [-1], [2**31], [[1.5]], 3]
)
def test_texts_of_no_known_kind_are_refused(decode: Decode, name: str, given: Any):
    with pytest.raises(InvalidRequest) as refused:
        _decoded(decode, {"model": "m", name: given})
    assert (refused.value.param or "").startswith(name)


@pytest.mark.parametrize(
    ("given", "param"), [("", "input"), (["x", ""], "input[1]"), ([[]], "input[0]")]
)
def test_an_empty_input_has_no_embedding(given: Any, param: str):
    with pytest.raises(InvalidRequest, match="must not be empty") as refused:
        _decoded(decode_embedding_request, EMBEDDING, input=given)
    assert refused.value.param == param


def test_an_empty_prompt_may_have_a_suffix():
    request, _ = _decoded(decode_completion_request, COMPLETION, prompt="", suffix="x")
    assert request.prompts == [""]


@pytest.mark.parametrize(
    ("decode", "body", "name", "most"),
    [
        (decode_completion_request, COMPLETION, "prompt", MOST_PROMPTS),
        (decode_embedding_request, EMBEDDING, "input", MOST_INPUTS),
        (decode_rerank_request, RERANK, "documents", MOST_DOCUMENTS),
    ],
)
def test_too_many_texts_are_refused(decode: Decode, body: dict[str, Any], name: str, most: int):
    _decoded(decode, body, **{name: ["x"] * most})
    with pytest.raises(InvalidRequest, match=f"at most {most}") as refused:
        _decoded(decode, body, **{name: ["x"] * (most + 1)})
    assert refused.value.param == name


# completions


def test_a_completion_has_16_tokens_unless_asked_otherwise():
    assert _decoded(decode_completion_request, COMPLETION)[0].token_limit == 16
    assert _decoded(decode_completion_request, COMPLETION, max_tokens=9)[0].token_limit == 9


@pytest.mark.parametrize(
    ("name", "more"), [("best_of", {"best_of": 3, "n": 2}), ("logprobs", {"echo": True})]
)
def test_what_is_not_offered_is_refused_by_name(name: str, more: dict[str, Any]):
    with pytest.raises(UnsupportedParameter) as refused:
        _decoded(decode_completion_request, COMPLETION, **({"logprobs": 1} | more))
    assert refused.value.param == name


def test_choices_are_bounded_over_all_prompts():
    with pytest.raises(InvalidRequest, match="n: at most 128 choices in one request, got 130"):
        _decoded(decode_completion_request, COMPLETION, prompt=["a", "b"], n=65)


def test_neutral_values_are_taken():
    _decoded(decode_completion_request, COMPLETION, n=1, best_of=1, logprobs=None)
    _decoded(decode_completion_request, COMPLETION, n=2, best_of=2, logprobs=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -1),
        ("top_p", 2),
        ("min_p", 1.5),
        ("seed", 2**63),
        ("n", 0),
        ("logprobs", 21),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: Any):
    with pytest.raises(RequestError) as refused:
        _decoded(decode_completion_request, COMPLETION, **{name: value})
    assert refused.value.param == name


def test_what_has_no_effect_is_listed():
    _, ignored = _decoded(
        decode_completion_request, COMPLETION, user="u", stream_options={"include_usage": True}
    )
    assert ignored == ["user", "stream_options"]
    _, ignored = _decoded(
        decode_completion_request,
        COMPLETION,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": True},
    )
    assert ignored == ["stream_options.include_obfuscation"]


# embeddings, rerank, tokens


@pytest.mark.parametrize(
    ("name", "value"),
    [("encoding_format", "int8"), ("dimensions", 0), ("dimensions", "8"), ("dimensions", 2**70)],
)
def test_an_embedding_option_that_is_none_is_named(name: str, value: Any):
    with pytest.raises(InvalidRequest) as refused:
        _decoded(decode_embedding_request, EMBEDDING, **{name: value})
    assert refused.value.param == name


def test_documents_are_strings_or_texts():
    request, _ = _decoded(decode_rerank_request, RERANK, documents=["a", {"text": "b"}, ""])
    assert request.texts == ["a", "b", ""]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("query", ""),
        ("documents", []),
        ("documents", "d"),
        ("documents", [{"title": "x"}]),
        ("documents", [{"text": "x", "title": "y"}]),
        ("top_n", 0),
        ("return_documents", "yes"),
    ],
)
def test_a_reranking_that_makes_no_sense_is_named(name: str, value: Any):
    with pytest.raises(InvalidRequest) as refused:
        _decoded(decode_rerank_request, RERANK, **{name: value})
    assert (refused.value.param or "").startswith(name)


MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("body", [{"content": "x", "messages": MESSAGES}, {}])
def test_either_content_or_messages_are_tokenized(body: dict[str, Any]):
    with pytest.raises(InvalidRequest, match="either content or messages"):
        _decoded(decode_tokenize_request, {"model": "m"}, **body)


def test_messages_are_checked_as_those_of_a_chat():
    with pytest.raises(InvalidRequest) as refused:
        _decoded(decode_tokenize_request, {"model": "m"}, messages=[{"role": "robot"}])
    assert refused.value.param == "messages[0].role"


def test_the_messages_make_the_chat_that_would_be_asked():
    tools = [{"type": "function", "function": {"name": "f"}}]
    request, ignored = _decoded(
        decode_tokenize_request,
        {"model": "m"},
        messages=MESSAGES,
        tools=tools,
        chat_template_kwargs={"enable_thinking": False},
    )
    assert ignored == []
    assert request.chat.messages == MESSAGES
    assert request.chat.tools == tools
    assert request.chat.chat_template_kwargs == {"enable_thinking": False}


def test_a_content_has_no_tools():
    request, ignored = _decoded(decode_tokenize_request, TOKENIZE, tools=[])
    assert request.chat is None
    assert ignored == ["tools"]

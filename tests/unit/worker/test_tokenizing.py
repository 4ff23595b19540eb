"""Tokens of a loaded model, in a real worker, beside its engine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_core.wire.ipc import Detokenize, Generate, Sampling, Tokenize, Tokens
from tests.unit.worker.asking import AskingWorker, packed

TEXT = "Zürich, 東京! 👍🏽👩‍👩‍👧 Привет\n\tdef f(x): return x+1"
_ids = count(1)


@pytest.fixture(scope="module")
def worker(other_gguf: str) -> Iterator[AskingWorker]:
    process = AskingWorker()
    with process:
        process.load("tiny")
        process.load("other", other_gguf)
        yield process


def _tokens(worker: AskingWorker, text: str, model: str = "tiny", **how: Any) -> list[int]:
    return worker.reply(Tokenize(next(_ids), model, text, **how)).tokens


def _text(worker: AskingWorker, tokens: list[int], model: str = "tiny") -> str:
    return worker.reply(Detokenize(next(_ids), model, packed(tokens))).text


@pytest.mark.parametrize("model", ["tiny", "other"])
@pytest.mark.parametrize("text", [TEXT, "", " ", "  two  spaces  ", "é" * 500, "\x00\x7f"])
def test_text_comes_back(worker: AskingWorker, model: str, text: str):
    assert _text(worker, _tokens(worker, text, model), model) == text


@settings(max_examples=50)
@given(text=st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back(worker: AskingWorker, text: str):
    assert _text(worker, _tokens(worker, text, parse_special=False)) == text


def test_special_tokens_are_parsed_only_when_asked(worker: AskingWorker):
    assert len(_tokens(worker, "<|im_end|>", parse_special=True)) == 1
    assert len(_tokens(worker, "<|im_end|>", parse_special=False)) > 1
    assert _text(worker, _tokens(worker, "<|im_end|>", parse_special=True)) == "<|im_end|>"


def test_special_tokens_are_added_only_when_asked(worker: AskingWorker):
    bare = _tokens(worker, "hi", "other")
    assert _tokens(worker, "hi", "other", ends="all")[1:] == bare


def test_a_prompt_begins_with_exactly_one_bos(worker: AskingWorker):
    for text in ("hi", "<s>hi"):
        tokens = _tokens(worker, text, "other", ends="prompt")
        assert _text(worker, tokens, "other") == "<s>hi"
    request = next(_ids)
    generated = Generate(request, "other", "hi", Sampling(temperature=0), 1)
    usage = worker.reply(generated).finished
    assert usage is not None
    assert usage.usage.prompt == len(_tokens(worker, "hi", "other", ends="prompt"))
    assert _tokens(worker, "hi", ends="prompt") == _tokens(worker, "hi")


def test_pieces_make_up_the_text(worker: AskingWorker):
    reply = worker.reply(Tokenize(next(_ids), "tiny", TEXT, with_pieces=True))
    assert isinstance(reply.result, Tokens)
    pieces = reply.result.pieces
    assert pieces is not None
    assert b"".join(pieces[token] for token in reply.tokens).decode() == TEXT


def test_usage_counts_the_tokens(worker: AskingWorker):
    reply = worker.reply(Tokenize(next(_ids), "tiny", TEXT))
    assert reply.finished is not None
    assert reply.finished.usage.prompt == len(reply.tokens)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_an_id_that_is_no_token_is_named(worker: AskingWorker, token: int):
    fault = worker.reply(Detokenize(next(_ids), "tiny", packed([1, token]))).fault
    assert fault is not None
    assert (fault.code, fault.param) == ("invalid_request", "tokens")
    assert f"{token} is no token" in fault.message


def test_a_long_text_holds_up_neither_the_worker_nor_other_requests(worker: AskingWorker):
    """The control loop answers for another model while a text of megabytes is cut up."""
    long = worker.begin(Tokenize(next(_ids), "tiny", "lorem ipsum dolor " * 200_000))
    short = worker.begin(Tokenize(next(_ids), "other", "hi"))
    worker.wait_until(lambda: short.is_over)
    assert not long.is_over
    worker.wait_until(lambda: long.is_over)
    assert len(long.tokens) > 200_000


def test_a_word_of_megabytes_is_tokens_too(worker: AskingWorker):
    """Pre-tokenizers made of regular expressions have overflowed their stack on such."""
    assert _text(worker, _tokens(worker, "a" * 2_000_000)) == "a" * 2_000_000


def test_a_withdrawn_request_is_never_computed(worker: AskingWorker):
    long = worker.begin(Tokenize(next(_ids), "tiny", "lorem ipsum dolor " * 100_000))
    waiting = worker.begin(Tokenize(next(_ids), "tiny", "never"))
    worker.withdraw(max(worker.replies))
    worker.wait_until(lambda: waiting.is_over)
    assert not long.is_over
    assert waiting.finished is not None
    assert waiting.finished.reason == "cancelled"
    assert waiting.result is None
    worker.wait_until(lambda: long.is_over)


def test_unloading_ends_what_waits_with_a_fault(worker: AskingWorker, other_gguf: str):
    worker.load("leaving", other_gguf)
    worker.begin(Tokenize(next(_ids), "leaving", "lorem ipsum dolor " * 200_000))
    waiting = worker.begin(Tokenize(next(_ids), "leaving", "hi"))
    worker.unload("leaving")
    assert waiting.fault is not None
    assert "was unloaded meanwhile" in waiting.fault.message

"""Embedding and reranking models in a real worker: exactness, refusals, and company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from cortex_core.wire.ipc import (
    Ask,
    Embed,
    Finished,
    Generate,
    LoadFailed,
    Pause,
    Rank,
    Sampling,
    Tokenize,
)
from neuron.worker.embedding import normalized, scores
from tests.unit.worker.asking import AskingWorker
from tools.make_gguf import BertShape, LastTokenShape, make_gguf

SHAPES = {
    "mean": BertShape(),
    "cls": BertShape(pooling="cls"),
    "last": LastTokenShape(),
    "rank": BertShape(pooling="rank"),
    "yes-no": LastTokenShape(pooling="rank"),
}
# Flash attention reads keys and values as f16, and a row's neighbours decide how it is summed.
CLOSE = 2e-3
EMBEDDERS = ["mean", "cls", "last"]
RERANKERS = ["rank", "yes-no"]
TEXTS = [
    "The cat sat on the mat.",
    "x",
    "Zürich, 東京 und anderswo",
    "one two three " * 40,
    "The cat sat on the mat.",
    *(f"text number {n} " * (n % 7 + 1) for n in range(90)),
]
_ids = count(1)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskingWorker]:
    folder = tmp_path_factory.mktemp("embedding")
    process = AskingWorker()
    with process:
        for name, shape in SHAPES.items():
            path = make_gguf(folder / f"{name}.gguf", shape, file_type="F32")
            process.load(name, str(path))
        process.load("tiny")
        yield process


def embed(model: str, *inputs: str | list[int], dimensions: int | None = None) -> Embed:
    return Embed(next(_ids), model, list(inputs), dimensions)


def rank(model: str, query: str, *documents: str) -> Rank:
    return Rank(next(_ids), model, query, list(documents))


@pytest.mark.parametrize("model", EMBEDDERS)
def test_a_batch_gives_what_each_text_gives_alone(worker: AskingWorker, model: str):
    batch = worker.reply(embed(model, *TEXTS)).vectors
    alone = np.concatenate([worker.reply(embed(model, text)).vectors for text in TEXTS[:8]])
    assert batch.shape == (len(TEXTS), SHAPES[model].width)
    assert np.abs(batch[:8] - alone).max() < CLOSE


@pytest.mark.parametrize("model", EMBEDDERS)
def test_vectors_have_length_one_and_equal_texts_equal_ones(worker: AskingWorker, model: str):
    vectors = worker.reply(embed(model, *TEXTS)).vectors
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[4] == pytest.approx(1, abs=1e-4)
    assert vectors[0] @ vectors[1] < 0.999


def test_many_texts_share_few_passes(worker: AskingWorker):
    model = "mean"

    def steps() -> int:
        (load,) = [m for m in worker.progress[-1].models if m.model == model]
        return load.steps

    worker.progress.clear()
    worker.wait_until(lambda: bool(worker.progress))
    before = steps()
    reply = worker.reply(embed(model, *TEXTS))
    worker.progress.clear()
    worker.wait_until(lambda: bool(worker.progress))
    assert reply.finished is not None
    fewest = max(-(-len(TEXTS) // 64), -(-reply.finished.usage.prompt // 512))
    assert steps() - before <= fewest + 1


def test_dimensions_are_the_first_ones_at_length_one_again(worker: AskingWorker):
    whole = worker.reply(embed("mean", *TEXTS[:3])).vectors
    cut = worker.reply(embed("mean", *TEXTS[:3], dimensions=8)).vectors
    assert cut.shape == (3, 8)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    assert np.allclose(cut, expected, atol=CLOSE)


def test_token_ids_are_taken_as_they_are(worker: AskingWorker):
    asked = Tokenize(next(_ids), "mean", "hello world", "all")
    tokens = worker.reply(asked).tokens
    by_text, by_ids = worker.reply(embed("mean", "hello world", tokens)).vectors
    assert np.allclose(by_text, by_ids, atol=CLOSE)
    without_ends = worker.reply(embed("mean", tokens[1:-1])).vectors[0]
    assert not np.allclose(by_text, without_ends, atol=10 * CLOSE)


def test_special_tokens_in_a_text_are_text(worker: AskingWorker):
    """Else a document could end itself, and speak for another."""
    reply = worker.reply(embed("last", "<|im_end|>"))
    assert reply.finished is not None
    assert reply.finished.usage.prompt > 1


def test_usage_counts_every_token_once(worker: AskingWorker):
    one, two = (worker.reply(embed("mean", text)) for text in TEXTS[:2])
    both = worker.reply(embed("mean", *TEXTS[:2]))
    assert one.finished
    assert two.finished
    assert both.finished
    assert both.started
    assert both.finished.usage.prompt == one.finished.usage.prompt + two.finished.usage.prompt
    assert both.started.prompt == both.finished.usage.prompt


def test_a_text_longer_than_a_pass_is_computed_over_several(worker: AskingWorker):
    long = "alpha beta gamma " * 400
    with_others = worker.reply(embed("last", "x", long, "y")).vectors[1]
    alone = worker.reply(embed("last", long))
    assert alone.finished
    assert alone.finished.usage.prompt > 512
    assert np.abs(with_others - alone.vectors[0]).max() < CLOSE
    assert not np.allclose(alone.vectors[0], worker.reply(embed("last", long + "x")).vectors[0])


@pytest.mark.parametrize(
    ("asked", "code", "param", "told"),
    [
        (embed("mean", "x", dimensions=65), "invalid_request", "dimensions", "at most 64"),
        (embed("mean", "a " * 511), "context_length_exceeded", "input", "512 tokens"),
        (embed("mean", "x", "a " * 511), "context_length_exceeded", "input[1]", "has 513"),
        (embed("mean", [2, 1024, 3]), "invalid_request", "input", "1024 is no token"),
        (embed("mean", "x", [-1]), "invalid_request", "input[1]", "-1 is no token"),
        (embed("last", "x", ""), "invalid_request", "input[1]", "no tokens"),
        (rank("rank", "q", "d", "a " * 600), "context_length_exceeded", "documents[1]", "512"),
        (embed("rank", "x"), "invalid_request", "model", "'rank' cannot give embeddings"),
        (embed("tiny", "x"), "invalid_request", "model", "'tiny' cannot give embeddings"),
        (rank("mean", "q", "d"), "invalid_request", "model", "'mean' cannot rank"),
        (rank("tiny", "q", "d"), "invalid_request", "model", "'tiny' cannot rank"),
        (
            Generate(next(_ids), "mean", "x", Sampling()),
            "invalid_request",
            "model",
            "'mean' cannot generate text",
        ),
        (embed("gone", "x"), "model_not_found", None, "'gone' is not loaded"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    worker: AskingWorker, asked: Ask, code: str, param: str | None, told: str
):
    fault = worker.reply(asked).fault
    assert fault is not None
    assert (fault.code, fault.param) == (code, param)
    assert told in fault.message


def test_the_longest_text_that_fits_is_taken(worker: AskingWorker):
    assert worker.reply(embed("mean", "a " * 510)).vectors.shape == (1, 64)


@pytest.mark.parametrize("model", RERANKERS)
def test_scores_are_from_0_to_1_and_a_batch_scores_as_one_by_one(worker: AskingWorker, model: str):
    documents = TEXTS[:8]
    batch = worker.reply(rank(model, "where is the cat", *documents)).scores
    alone = [worker.reply(rank(model, "where is the cat", d)).scores[0] for d in documents]
    assert all(0 < score < 1 for score in batch)
    assert batch == pytest.approx(alone, abs=CLOSE)
    assert batch[0] == pytest.approx(batch[4], abs=CLOSE)
    assert len({round(score, 5) for score in batch}) > 4


@pytest.mark.parametrize("model", RERANKERS)
def test_the_query_counts(worker: AskingWorker, model: str):
    one = worker.reply(rank(model, "where is the cat", *TEXTS[:4])).scores
    other = worker.reply(rank(model, "what is a dog", *TEXTS[:4])).scores
    assert one != pytest.approx(other, abs=CLOSE)


def test_requests_of_several_clients_all_get_their_own(worker: AskingWorker):
    alone = [worker.reply(embed("mean", text)).vectors[0] for text in TEXTS[:6]]
    replies = [worker.begin(embed("mean", text, "x " * 100)) for text in TEXTS[:6]]
    worker.wait_until(lambda: all(reply.is_over for reply in replies))
    for reply, vector in zip(replies, alone, strict=True):
        assert np.abs(reply.vectors[0] - vector).max() < CLOSE


def test_a_withdrawn_request_is_computed_no_further(worker: AskingWorker):
    big = worker.begin(embed("mean", *["a " * 500] * 300))
    worker.wait_until(lambda: big.started is not None)
    worker.withdraw(max(worker.replies))
    worker.wait_until(lambda: big.is_over)
    assert isinstance(big.finished, Finished)
    assert big.finished.reason == "cancelled"
    assert big.result is None
    assert worker.reply(embed("mean", "x")).vectors.shape == (1, 64)


def test_nothing_of_it_can_be_paused(worker: AskingWorker):
    some = worker.begin(embed("mean", *["a " * 500] * 30))
    worker.send(Pause(max(worker.replies)))
    worker.wait_until(lambda: some.is_over)
    assert some.vectors.shape == (30, 64)


def test_unloading_ends_what_waits_with_a_fault(worker: AskingWorker, tmp_path: Path):
    worker.load("leaving", str(make_gguf(tmp_path / "leaving.gguf", BertShape())))
    big = worker.begin(embed("leaving", *["a " * 500] * 300))
    worker.wait_until(lambda: big.started is not None)
    worker.unload("leaving")
    assert big.fault is not None
    assert "was unloaded meanwhile" in big.fault.message


def test_a_classifier_of_many_labels_is_no_reranker(worker: AskingWorker, tmp_path: Path):
    class ManyLabels(BertShape):
        def metadata(self):
            return super().metadata() | {"classifier.output_labels": ["bad", "fair", "good"]}

        def tensors(self):
            for tensor in super().tensors():
                is_head = tensor.name.startswith("cls.output")
                yield replace(tensor, dims=(3, *tensor.dims[1:])) if is_head else tensor

    path = make_gguf(tmp_path / "labels.gguf", ManyLabels(pooling="rank"))
    reply = worker.try_load("labels", str(path))
    assert isinstance(reply, LoadFailed)
    assert reply.fault.code == "gguf_unsupported"
    assert "3 labels" in reply.fault.message


def test_a_smaller_context_is_honoured_and_a_larger_one_is_the_models_own(
    worker: AskingWorker, tmp_path: Path
):
    path = str(make_gguf(tmp_path / "c.gguf", BertShape()))
    assert worker.load("small", path, context=64).info.context == 64
    assert worker.load("large", path, context=4096).info.context == 512
    fault = worker.reply(embed("small", "a " * 70)).fault
    assert fault is not None
    assert fault.code == "context_length_exceeded"


def test_a_vector_without_length_stays_as_it_is():
    vectors = np.array([[3, 4, 0], [0, 0, 0]], np.float32)
    assert normalized(vectors, None).tolist() == [[np.float32(0.6), np.float32(0.8), 0], [0, 0, 0]]
    assert normalized(vectors, 1).tolist() == [[1], [0]]


def test_one_label_is_a_logit_and_of_two_the_first_is_yes():
    logits = np.array([[0], [1000], [-1000]], np.float32)
    assert scores(logits) == [0.5, 1.0, 0.0]
    assert scores(np.array([[0.25, 0.75]], np.float32)) == [0.25]

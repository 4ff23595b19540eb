"""Made embedding and reranking files load in llama.cpp and are what they say."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import pytest

from tools.make_gguf import BertShape, LastTokenShape, ShapeError, make_gguf


def _load(path: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, vocab_only=True, verbose=False)


@pytest.mark.parametrize(
    ("shape", "key", "pooling"),
    [
        (BertShape(), "bert.pooling_type", "1"),
        (BertShape(pooling="cls"), "bert.pooling_type", "2"),
        (BertShape(pooling="rank"), "bert.pooling_type", "4"),
        (LastTokenShape(), "qwen3.pooling_type", "3"),
        (LastTokenShape(pooling="rank"), "qwen3.pooling_type", "4"),
    ],
)
def test_the_file_says_how_it_pools(
    shape: BertShape | LastTokenShape, key: str, pooling: str, tmp_path: Path
):
    model = _load(make_gguf(tmp_path / "m.gguf", shape))
    assert model.metadata[key] == pooling
    model.close()


def test_an_encoder_is_small_and_says_that_it_is_not_causal(tmp_path: Path):
    path = make_gguf(tmp_path / "m.gguf", BertShape())
    assert path.stat().st_size < 500_000
    model = _load(path)
    assert model.metadata["bert.attention.causal"] == "false"
    model.close()


def test_text_becomes_word_pieces_between_cls_and_sep(tmp_path: Path):
    model = _load(make_gguf(tmp_path / "m.gguf", BertShape()))
    ids = model.tokenize("Hello, 日本!".encode(), add_bos=True, special=False)
    assert ids[0] == 2
    assert ids[-1] == 3
    assert 1 not in ids, "[UNK]"
    assert ids == model.tokenize("HELLO , 日 本 !".encode(), add_bos=True, special=False)
    model.close()


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path):
    one, two = (make_gguf(tmp_path / f"{n}.gguf", BertShape(), name="x") for n in "ab")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("change", [{"width": 63}, {"arch": "llama"}, {"pooling": "max"}])
def test_sizes_that_make_no_model_are_refused(change: dict):
    with pytest.raises(ShapeError, match=next(iter(change))):
        BertShape(**change)

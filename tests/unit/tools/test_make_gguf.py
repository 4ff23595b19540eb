"""Made files load in llama.cpp, tokenise any text and back, and decode varied, finite logits."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.make_gguf import PRESETS, ModelShape, ShapeError, make_gguf
from tools.make_gguf.__main__ import main
from tools.make_gguf.vocabulary import make_vocabulary

_SMALL = {name: PRESETS[name] for name in ("toy", "tiny-llama")}
_TEXT = "Zürich, 東京, Привет! def f(x):\n\treturn x+1  # 👍🏽👩‍👩‍👧 \x00\x7f"


@pytest.fixture(scope="module", params=_SMALL)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = make_gguf(tmp_path_factory.mktemp("made") / "m.gguf", _SMALL[request.param])
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, verbose=False)
    yield model
    model.close()


def _back_and_forth(model: llama_cpp.Llama, text: str) -> str:
    tokens = model.tokenize(text.encode(), add_bos=False, special=False)
    return model.detokenize(tokens, special=True).decode()


def test_any_text_round_trips(model: llama_cpp.Llama):
    assert _back_and_forth(model, _TEXT) == _TEXT


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1))
def test_generated_text_round_trips(model: llama_cpp.Llama, text: str):
    assert _back_and_forth(model, text) == text


def test_made_up_merges_shorten_english(model: llama_cpp.Llama):
    text = b"the rain in the east is another story entirely"
    assert len(model.tokenize(text, add_bos=False)) < 0.6 * len(text)


def test_special_tokens_are_one_token_each(model: llama_cpp.Llama):
    architecture = model.metadata["general.architecture"]
    markers = {"qwen3": "<think>", "llama": "[THINK]"}[architecture]
    end = {"qwen3": "<|im_end|>", "llama": "</s>"}[architecture]
    assert len(model.tokenize(markers.encode(), add_bos=False, special=True)) == 1
    assert model.tokenize(end.encode(), add_bos=False, special=True) == [model.token_eos()]


def test_greedy_decoding_is_finite_and_varied(model: llama_cpp.Llama):
    model.reset()
    tokens = model.tokenize(b"once upon a time", add_bos=False)
    for _ in range(16):
        model.eval(tokens[-1:] if model.n_tokens else tokens)
        logits = np.array(llama_cpp.llama_get_logits_ith(model.ctx, -1)[: model.n_vocab()])
        assert np.isfinite(logits).all()
        assert 1 < logits.std() < 5
        tokens.append(int(logits.argmax()))
    assert len(set(tokens[-16:])) > 8


def test_a_chat_template_is_part_of_the_file(model: llama_cpp.Llama):
    assert "messages" in model.metadata["tokenizer.chat_template"]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path):
    one, two, other = (
        make_gguf(tmp_path / f"{name}.gguf", PRESETS["toy"], seed=seed, name="x").read_bytes()
        for name, seed in (("one", 7), ("two", 7), ("other", 8))
    )
    assert one == two
    assert one != other


def test_q4_k_m_is_quantised_and_loads(tmp_path: Path):
    shape = dataclasses.replace(PRESETS["toy"], width=256, ffn=512)
    plain = make_gguf(tmp_path / "f16.gguf", shape)
    small = make_gguf(tmp_path / "q4.gguf", shape, file_type="Q4_K_M", threads=1)
    assert small.stat().st_size < 0.5 * plain.stat().st_size
    model = llama_cpp.Llama(str(small), n_ctx=64, n_threads=1, verbose=False)
    model.eval(model.tokenize(b"hello"))
    assert np.isfinite(llama_cpp.llama_get_logits_ith(model.ctx, -1)[: model.n_vocab()]).all()
    model.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f16.gguf", "q4.gguf"]


@pytest.mark.parametrize("arch", ["qwen3", "llama"])
def test_the_vocabulary_has_the_asked_size_without_doubles(arch):
    vocabulary = make_vocabulary(arch, 151_936, seed=1)
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == 151_936
    assert len(vocabulary.kinds) == 151_936


def test_every_merge_joins_two_earlier_tokens():
    vocabulary = make_vocabulary("qwen3", 4000, seed=1)
    seen = set(vocabulary.tokens[:256])
    for merge in vocabulary.merges:
        left, right = merge.split(" ")
        assert left in seen
        assert right in seen
        seen.add(left + right)


@pytest.mark.parametrize(
    ("sizes", "culprit"),
    [
        ({"arch": "gpt9"}, "arch: 'gpt9'"),
        ({"layers": 0}, "layers"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads 3"),
        ({"width": 130, "heads": 4}, "width: 130"),
        ({"width": 36, "heads": 4, "kv_heads": 4}, "head_dim: 9"),
        ({"head_dim": -2}, "head_dim"),
        ({"vocab": 100}, "vocab"),
    ],
)
def test_sizes_that_make_no_model_are_refused_by_name(sizes: dict, culprit: str):
    with pytest.raises(ShapeError, match=culprit):
        ModelShape(**sizes)


def test_rows_that_do_not_fit_the_blocks_are_refused(tmp_path: Path):
    with pytest.raises(ShapeError, match="width: 128 is not a multiple of 256, as Q4_K_M needs"):
        make_gguf(tmp_path / "m.gguf", PRESETS["toy"], file_type="Q4_K_M")
    assert not list(tmp_path.iterdir())


def test_an_unknown_type_is_refused(tmp_path: Path):
    with pytest.raises(ShapeError, match="type: 'Q99'"):
        make_gguf(tmp_path / "m.gguf", PRESETS["toy"], file_type="Q99")


def test_the_command_names_a_folder_that_is_not_there(tmp_path: Path, capsys):
    assert main([str(tmp_path / "no" / "m.gguf"), "--preset", "toy"]) == 1
    assert "no/m.gguf" in capsys.readouterr().err


def test_the_command_overrides_its_preset(tmp_path: Path):
    out = tmp_path / "m.gguf"
    command = [sys.executable, "-m", "tools.make_gguf", str(out), "--preset", "toy"]
    done = subprocess.run(
        [*command, "--layers", "1", "--type", "Q8_0"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    model = llama_cpp.Llama(str(out), n_ctx=64, n_threads=1, verbose=False)
    assert model.metadata["qwen3.block_count"] == "1"
    assert model.metadata["general.file_type"] == "7"
    model.close()

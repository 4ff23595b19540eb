"""The made models whose memory is not plain cells: llama.cpp sees each as what it is meant to be,
and each remembers in its own way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from tools.make_gguf import (
    PRESETS,
    HybridShape,
    MambaShape,
    Mixer,
    Shape,
    ShapeError,
    SlidingShape,
    make_gguf,
)
from tools.make_gguf.__main__ import main

_KINDS = ("tiny-sliding", "tiny-mamba", "tiny-hybrid")
Opener = Callable[[Shape], llama_cpp.Llama]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """Makes a file of a shape in Q8_0 and loads it; closes all at the end."""
    models: list[llama_cpp.Llama] = []

    def open_(shape: Shape) -> llama_cpp.Llama:
        path = make_gguf(tmp_path / f"{len(models)}.gguf", shape, file_type="Q8_0", threads=1)
        models.append(llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, verbose=False))
        return models[-1]

    yield open_
    for model in models:
        model.close()


def _logits(model: llama_cpp.Llama, tokens: list[int]) -> np.ndarray:
    """After these tokens, from an empty memory."""
    model.reset()
    memory = llama_cpp.llama_get_memory(model.ctx)
    assert memory is not None
    llama_cpp.llama_memory_clear(memory, True)
    model.eval(tokens)
    return np.array(llama_cpp.llama_get_logits_ith(model.ctx, -1)[: model.n_vocab()])


@pytest.mark.parametrize("preset", _KINDS)
def test_greedy_decoding_is_finite_and_varied(opened: Opener, preset: str):
    model = opened(PRESETS[preset])
    tokens = model.tokenize(b"once upon a time", add_bos=False)
    logits, said = _logits(model, tokens), []
    for _ in range(24):
        assert np.isfinite(logits).all()
        assert 1 < logits.std() < 5
        said.append(int(logits.argmax()))
        model.eval(said[-1:])
        logits = np.array(llama_cpp.llama_get_logits_ith(model.ctx, -1)[: model.n_vocab()])
    assert len(set(said)) > 8


@pytest.mark.parametrize(
    ("preset", "is_recurrent", "is_hybrid", "window"),
    [
        ("toy", False, False, 0),
        ("tiny-sliding", False, False, 64),
        ("tiny-mamba", True, False, 0),
        ("tiny-hybrid", False, True, 0),
    ],
)
def test_llama_cpp_sees_the_kind_of_memory(
    opened: Opener, preset: str, is_recurrent: bool, is_hybrid: bool, window: int
):
    native = opened(PRESETS[preset]).model
    assert llama_cpp.llama_model_is_recurrent(native) is is_recurrent
    assert llama_cpp.llama_model_is_hybrid(native) is is_hybrid
    assert llama_cpp.llama_model_n_swa(native) == window


def test_a_window_hides_what_lies_behind_it_and_nothing_else(opened: Opener):
    narrow = SlidingShape(layers=1, window=32)  # its one layer has no full attention
    model = opened(narrow)
    tokens = list(range(300, 360))
    far, near = tokens.copy(), tokens.copy()
    far[4] += 1
    near[-4] += 1
    base = _logits(model, tokens)
    assert np.array_equal(_logits(model, far), base)
    assert not np.allclose(_logits(model, near), base)


def test_full_layers_between_the_windows_see_everything(opened: Opener):
    model = opened(SlidingShape(layers=2, window=32))
    tokens = list(range(300, 360))
    changed = [tokens[0] + 1, *tokens[1:]]
    assert not np.allclose(_logits(model, changed), _logits(model, tokens))


@pytest.mark.parametrize("preset", ["tiny-mamba", "tiny-hybrid"])
def test_a_state_still_holds_what_was_said_long_ago(opened: Opener, preset: str):
    model = opened(PRESETS[preset])
    tokens = list(range(300, 428))
    changed = [tokens[0] + 1, *tokens[1:]]
    assert not np.array_equal(_logits(model, changed), _logits(model, tokens))


@pytest.mark.parametrize("preset", _KINDS)
def test_rows_that_do_not_fit_the_blocks_are_refused(tmp_path: Path, preset: str):
    with pytest.raises(ShapeError, match="width: 128 is not a multiple of 256, as Q4_K_M needs"):
        make_gguf(tmp_path / "m.gguf", PRESETS[preset], file_type="Q4_K_M")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: SlidingShape(window=0), "window"),
        (lambda: SlidingShape(full_every=0), "full_every"),
        (lambda: SlidingShape(arch="qwen3"), "arch: 'qwen3'"),
        (lambda: Mixer(state=0), "state"),
        (lambda: Mixer(kernel=1), "kernel"),
        (lambda: Mixer(heads=8, groups=3), "groups 3"),
        (lambda: MambaShape(arch="llama"), "arch: 'llama'"),
        (lambda: MambaShape(layers=0), "layers"),
        (lambda: MambaShape(vocab=100), "vocab"),
        (lambda: MambaShape(width=100, mixer=Mixer(heads=16)), "width: twice 100"),
        (lambda: HybridShape(width=104, mixer=Mixer(heads=32)), "width: twice 104"),
        (lambda: HybridShape(attention_every=1), "attention_every"),
        (lambda: HybridShape(layers=2, attention_every=3), "layers: 2"),
    ],
)
def test_sizes_that_make_no_model_are_refused_by_name(make: Callable[[], Shape], culprit: str):
    with pytest.raises(ShapeError, match=culprit):
        make()


def test_groups_of_heads_make_a_model_too(opened: Opener):
    shape = dataclasses.replace(PRESETS["tiny-mamba"], layers=1, mixer=Mixer(groups=2))
    assert np.isfinite(_logits(opened(shape), [300, 301, 302])).all()


def test_the_command_refuses_a_size_that_its_preset_does_not_have(tmp_path: Path, capsys):
    assert main([str(tmp_path / "m.gguf"), "--preset", "tiny-mamba", "--heads", "4"]) == 1
    assert "heads: a mamba2 model has none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

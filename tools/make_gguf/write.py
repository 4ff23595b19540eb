"""Write a shape as a GGUF: metadata, made-up vocabulary, random weights; then quantise."""

from __future__ import annotations

import ctypes
import logging
import math
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from tools.make_gguf.shape import ModelShape
from tools.make_gguf.vocabulary import make_vocabulary

__all__ = ["make_gguf"]

_TOKEN_TYPES = {
    "normal": gguf.TokenType.NORMAL,
    "control": gguf.TokenType.CONTROL,
    "user_defined": gguf.TokenType.USER_DEFINED,
}
_TEMPLATES = {"qwen3": "chatml.jinja", "llama": "bracket.jinja"}
_PLAIN = {"F32": np.float32, "F16": np.float16}
_NORM_EPS = 1e-6
# Spread of the logits of a made-up model: wide enough that greedy decoding has a clear winner,
# narrow enough that sampling at temperature 1 wanders.
_LOGIT_STD = 2.5


def make_gguf(
    out: str | os.PathLike[str],
    shape: ModelShape,
    *,
    file_type: str = "F16",
    seed: int = 0,
    name: str | None = None,
    threads: int = 0,
) -> Path:
    """Write `out` and return its path; the same arguments give the same bytes.

    A failure leaves nothing behind. Raises ShapeError on sizes that do not fit the type, OSError
    where the file cannot be written. Threads 0 = every core.
    """
    shape.check_type(file_type)
    out = Path(out)
    part = out.with_name(out.name + ".part")
    plain = part if file_type in _PLAIN else out.with_name(out.name + ".f16.part")
    try:
        _write(plain, shape, _PLAIN.get(file_type, np.float16), seed, name or out.stem)
        if plain is not part:
            _quantise(plain, part, file_type, threads)
        part.replace(out)
    finally:
        plain.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return out


def _write(path: Path, shape: ModelShape, dtype: type, seed: int, name: str) -> None:
    path.touch()  # the writer opens its file late; a folder that is not there should show at once
    writer = gguf.GGUFWriter(path, shape.arch)
    try:
        _add_metadata(writer, shape, dtype, name)
        _add_vocabulary(writer, shape, seed)
        tensors = list(_tensors(shape))
        for tensor, dims, _ in tensors:
            kind = np.dtype(np.float32 if len(dims) == 1 else dtype)
            writer.add_tensor_info(tensor, dims, kind, math.prod(dims) * kind.itemsize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for index, (tensor, dims, scale) in enumerate(tensors):
            weights = _weights(np.random.default_rng([seed, index]), tensor, dims, scale)
            writer.write_tensor_data(weights if len(dims) == 1 else weights.astype(dtype))
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, shape: ModelShape, dtype: type, name: str) -> None:
    writer.add_name(name)
    writer.add_description("random weights; for tests and benchmarks only")
    is_half = dtype is np.float16
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if is_half else gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(_NORM_EPS)
    writer.add_vocab_size(shape.vocab)


def _add_vocabulary(writer: gguf.GGUFWriter, shape: ModelShape, seed: int) -> None:
    vocabulary = make_vocabulary(shape.arch, shape.vocab, seed)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_type)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([_TOKEN_TYPES[kind] for kind in vocabulary.kinds])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.tokens.index(vocabulary.bos))
    writer.add_eos_token_id(vocabulary.tokens.index(vocabulary.eos))
    writer.add_add_bos_token(vocabulary.adds_bos)
    template = files("tools.make_gguf").joinpath(_TEMPLATES[shape.arch])
    writer.add_chat_template(template.read_text("utf-8"))


def _tensors(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, dimensions (rows, columns) and standard deviation; a vector is a norm's scale."""
    width, queries = shape.width, shape.heads * shape.head_width
    keys = shape.kv_heads * shape.head_width
    embedding = _LOGIT_STD / math.sqrt(width)
    yield "token_embd.weight", (shape.vocab, width), embedding
    yield "output_norm.weight", (width,), 0.0
    if not shape.tied:
        yield "output.weight", (shape.vocab, width), embedding
    for layer in range(shape.layers):
        blk = f"blk.{layer}"
        yield f"{blk}.attn_norm.weight", (width,), 0.0
        yield f"{blk}.attn_q.weight", (queries, width), width**-0.5
        yield f"{blk}.attn_k.weight", (keys, width), width**-0.5
        yield f"{blk}.attn_v.weight", (keys, width), width**-0.5
        yield f"{blk}.attn_output.weight", (width, queries), queries**-0.5
        if shape.arch == "qwen3":
            yield f"{blk}.attn_q_norm.weight", (shape.head_width,), 0.0
            yield f"{blk}.attn_k_norm.weight", (shape.head_width,), 0.0
        yield f"{blk}.ffn_norm.weight", (width,), 0.0
        yield f"{blk}.ffn_gate.weight", (shape.ffn, width), width**-0.5
        yield f"{blk}.ffn_up.weight", (shape.ffn, width), width**-0.5
        yield f"{blk}.ffn_down.weight", (width, shape.ffn), shape.ffn**-0.5


def _weights(
    rng: np.random.Generator, name: str, dims: tuple[int, ...], scale: float
) -> np.ndarray:
    if name == "output_norm.weight":
        # The residual stream still holds the last token's embedding; with a tied output matrix
        # that token would win for ever. Random signs take the two apart.
        return rng.choice(np.array([-1.0, 1.0], np.float32), dims)
    if len(dims) == 1:
        return np.ones(dims, np.float32)
    return rng.standard_normal(dims, np.float32) * np.float32(scale)


def _quantise(source: Path, target: Path, file_type: str, threads: int) -> None:
    logger = logging.getLogger("llama-cpp-python")  # its native log handler looks at this level
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
        params.nthread = threads
        status = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.pointer(params)
        )
    finally:
        logger.setLevel(level)
    if status != 0:
        raise OSError(f"llama.cpp could not quantise to {file_type} (status {status})")

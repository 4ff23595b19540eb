"""Write a shape as a GGUF: metadata, made-up vocabulary, random weights; then quantise."""

from __future__ import annotations

import ctypes
import logging
import math
import os
from importlib.resources import files
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from tools.make_gguf.shape import Shape
from tools.make_gguf.tensor import Tensor
from tools.make_gguf.vocabulary import make_vocabulary
from tools.make_gguf.wordpiece import add_wordpiece

__all__ = ["make_gguf"]

_TOKEN_TYPES = {
    "normal": gguf.TokenType.NORMAL,
    "control": gguf.TokenType.CONTROL,
    "user_defined": gguf.TokenType.USER_DEFINED,
}
_PLAIN = {"F32": np.float32, "F16": np.float16}


def make_gguf(
    out: str | os.PathLike[str],
    shape: Shape,
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


def _write(path: Path, shape: Shape, dtype: type, seed: int, name: str) -> None:
    path.touch()  # the writer opens its file late; a folder that is not there should show at once
    writer = gguf.GGUFWriter(path, shape.arch)
    try:
        _add_metadata(writer, shape, dtype, name)
        _add_vocabulary(writer, shape, seed)
        tensors = list(shape.tensors())
        for tensor in tensors:
            kind = np.dtype(_kind(tensor, dtype))
            writer.add_tensor_info(
                tensor.name, tensor.dims, kind, math.prod(tensor.dims) * kind.itemsize
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for index, tensor in enumerate(tensors):
            weights = tensor.fill(np.random.default_rng([seed, index]), tensor.dims)
            writer.write_tensor_data(weights.astype(_kind(tensor, dtype), copy=False))
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape, dtype: type, name: str) -> None:
    writer.add_name(name)
    writer.add_description("random weights; for tests and benchmarks only")
    is_half = dtype is np.float16
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if is_half else gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    for key, value in shape.metadata().items():
        full = f"{shape.arch}.{key}"
        if isinstance(value, list):
            writer.add_array(full, value)
        elif isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)
    writer.add_vocab_size(shape.vocab)


def _add_vocabulary(writer: gguf.GGUFWriter, shape: Shape, seed: int) -> None:
    if shape.arch == "bert":
        add_wordpiece(writer, shape.vocab, seed)
        return
    vocabulary = make_vocabulary(shape.arch, shape.vocab, seed)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_type)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([_TOKEN_TYPES[kind] for kind in vocabulary.kinds])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.tokens.index(vocabulary.bos))
    writer.add_eos_token_id(vocabulary.tokens.index(vocabulary.eos))
    writer.add_add_bos_token(vocabulary.adds_bos)
    template = files("tools.make_gguf").joinpath(vocabulary.template)
    writer.add_chat_template(template.read_text("utf-8"))


def _kind(tensor: Tensor, dtype: type) -> type:
    return np.float32 if tensor.is_exact or len(tensor.dims) == 1 else dtype


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

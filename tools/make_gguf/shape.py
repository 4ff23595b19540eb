"""Sizes of a model, checked, and the metadata and tensors they mean. Knows nothing of files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from tools.make_gguf.tensor import Tensor, normal, ones, signs

__all__ = [
    "EMBEDDING_STD",
    "MIN_VOCAB",
    "NORM_EPS",
    "TYPES",
    "Metadata",
    "ModelShape",
    "Shape",
    "ShapeError",
    "attention",
    "check_least",
    "check_rows",
    "ends",
    "feed_forward",
]

Metadata = dict[str, int | float | list[int] | list[str]]
"""Keys without their architecture's prefix; integers are written as uint32, floats as float32."""

NORM_EPS = 1e-6
# Spread of the logits of a made-up model: wide enough that greedy decoding has a clear winner,
# narrow enough that sampling at temperature 1 wanders.
EMBEDDING_STD = 2.5

TYPES: dict[str, int] = {
    "F32": 1,
    "F16": 1,
    "BF16": 1,
    "Q4_0": 32,
    "Q4_1": 32,
    "Q5_0": 32,
    "Q5_1": 32,
    "Q8_0": 32,
    "Q2_K": 256,
    "Q3_K_S": 256,
    "Q3_K_M": 256,
    "Q3_K_L": 256,
    "Q4_K_S": 256,
    "Q4_K_M": 256,
    "Q5_K_S": 256,
    "Q5_K_M": 256,
    "Q6_K": 256,
}
"""File types and the block their rows must divide into. Where a row does not, llama.cpp falls
back to another type in silence and the file is no longer what its name says; so it is refused."""

MIN_VOCAB = 512  # bytes, special tokens, and some merges


class ShapeError(ValueError):
    """The sizes do not make a model; the message names the size."""


class Shape(Protocol):
    """What `make_gguf` needs of a model's sizes, whatever its architecture."""

    @property
    def arch(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def context(self) -> int: ...

    def check_type(self, file_type: str) -> None:
        """Raise ShapeError if some matrix's rows do not divide into the type's blocks."""
        ...

    def metadata(self) -> Metadata:
        """The architecture's keys, besides those of every model (context, width, vocabulary)."""
        ...

    def tensors(self) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class ModelShape:
    """A transformer. `head_dim` 0 = width / heads. `tied`: the output matrix is the embedding's."""

    arch: str = "qwen3"
    layers: int = 2
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 0
    ffn: int = 256
    vocab: int = 2048
    context: int = 4096
    tied: bool = True

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("qwen3", "llama", "internlm2")

    def __post_init__(self) -> None:
        if self.arch not in self.ARCHITECTURES:
            raise ShapeError(f"arch: {self.arch!r} is none of {', '.join(self.ARCHITECTURES)}")
        check_least(self, 1, "layers", "width", "heads", "kv_heads", "ffn", "context")
        check_least(self, MIN_VOCAB, "vocab")
        check_least(self, 0, "head_dim")
        if self.heads % self.kv_heads:
            raise ShapeError(f"heads: {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if not self.head_dim and self.width % self.heads:
            raise ShapeError(f"width: {self.width} is not a multiple of heads {self.heads}")
        if self.head_width % 2:
            raise ShapeError(f"head_dim: {self.head_width} is odd; rotary positions need pairs")

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def has_head_norms(self) -> bool:
        """Whether queries and keys are normalised head by head."""
        return self.arch == "qwen3"

    def check_type(self, file_type: str) -> None:
        queries = self.heads * self.head_width
        rows = {"width": self.width, "heads x head_dim": queries, "ffn": self.ffn}
        check_rows(rows, file_type)

    def metadata(self) -> Metadata:
        return {
            "block_count": self.layers,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_width,
            "attention.value_length": self.head_width,
            "rope.dimension_count": self.head_width,
            "rope.freq_base": 1_000_000.0,
            "attention.layer_norm_rms_epsilon": NORM_EPS,
        }

    def tensors(self) -> Iterator[Tensor]:
        yield from ends(self.vocab, self.width, is_tied=self.tied)
        for layer in range(self.layers):
            yield from attention(self, layer)
            yield from feed_forward(layer, self.width, self.ffn)


def ends(vocab: int, width: int, *, is_tied: bool) -> Iterator[Tensor]:
    """The embedding, the last norm and the output matrix."""
    embedding = normal(EMBEDDING_STD / math.sqrt(width))
    yield Tensor("token_embd.weight", (vocab, width), embedding)
    yield Tensor("output_norm.weight", (width,), signs)
    if not is_tied:
        yield Tensor("output.weight", (vocab, width), embedding)


def attention(shape: ModelShape, layer: int) -> Iterator[Tensor]:
    """One layer's attention and the norm before it."""
    blk, width = f"blk.{layer}", shape.width
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    yield Tensor(f"{blk}.attn_norm.weight", (width,), ones)
    yield Tensor(f"{blk}.attn_q.weight", (queries, width), normal(width**-0.5))
    yield Tensor(f"{blk}.attn_k.weight", (keys, width), normal(width**-0.5))
    yield Tensor(f"{blk}.attn_v.weight", (keys, width), normal(width**-0.5))
    yield Tensor(f"{blk}.attn_output.weight", (width, queries), normal(queries**-0.5))
    if shape.has_head_norms:
        yield Tensor(f"{blk}.attn_q_norm.weight", (shape.head_width,), ones)
        yield Tensor(f"{blk}.attn_k_norm.weight", (shape.head_width,), ones)


def feed_forward(layer: int, width: int, ffn: int) -> Iterator[Tensor]:
    """One layer's gated feed-forward network and the norm before it."""
    blk = f"blk.{layer}"
    yield Tensor(f"{blk}.ffn_norm.weight", (width,), ones)
    yield Tensor(f"{blk}.ffn_gate.weight", (ffn, width), normal(width**-0.5))
    yield Tensor(f"{blk}.ffn_up.weight", (ffn, width), normal(width**-0.5))
    yield Tensor(f"{blk}.ffn_down.weight", (width, ffn), normal(ffn**-0.5))


def check_least(sizes: object, least: int, *names: str) -> None:
    """Raise ShapeError for the first of these sizes that is below `least`."""
    for name in names:
        value = getattr(sizes, name)
        if value < least:
            raise ShapeError(f"{name}: must be at least {least}, got {value}")


def check_rows(rows: Mapping[str, int], file_type: str) -> None:
    """`rows`: the length of the matrices' rows, by the size they come from. Raises ShapeError."""
    block = TYPES.get(file_type)
    if block is None:
        raise ShapeError(f"type: {file_type!r} is none of {', '.join(TYPES)}")
    for name, row in rows.items():
        if row % block:
            raise ShapeError(f"{name}: {row} is not a multiple of {block}, as {file_type} needs")

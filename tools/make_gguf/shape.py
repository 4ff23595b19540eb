"""Sizes of a model, checked, and the ones worth a name. Knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["PRESETS", "TYPES", "Architecture", "ModelShape", "ShapeError"]

Architecture = Literal["qwen3", "llama"]

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

_MIN_VOCAB = 512  # bytes, special tokens, and some merges


class ShapeError(ValueError):
    """The sizes do not make a model; the message names the size."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`head_dim` 0 = width / heads. `tied`: the output matrix is the embedding's."""

    arch: Architecture = "qwen3"
    layers: int = 2
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 0
    ffn: int = 256
    vocab: int = 2048
    context: int = 4096
    tied: bool = True

    def __post_init__(self) -> None:
        if self.arch not in get_args(Architecture):
            raise ShapeError(f"arch: {self.arch!r} is none of {', '.join(get_args(Architecture))}")
        for name in ("layers", "width", "heads", "kv_heads", "ffn", "context"):
            value = getattr(self, name)
            if value < 1:
                raise ShapeError(f"{name}: must be at least 1, got {value}")
        if self.vocab < _MIN_VOCAB:
            raise ShapeError(f"vocab: must be at least {_MIN_VOCAB}, got {self.vocab}")
        if self.heads % self.kv_heads:
            raise ShapeError(f"heads: {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim < 0:
            raise ShapeError(f"head_dim: must be 0 or more, got {self.head_dim}")
        if not self.head_dim and self.width % self.heads:
            raise ShapeError(f"width: {self.width} is not a multiple of heads {self.heads}")
        if self.head_width % 2:
            raise ShapeError(f"head_dim: {self.head_width} is odd; rotary positions need pairs")

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.heads

    def check_type(self, file_type: str) -> None:
        """Raise ShapeError if some matrix's rows do not divide into the type's blocks."""
        block = TYPES.get(file_type)
        if block is None:
            raise ShapeError(f"type: {file_type!r} is none of {', '.join(TYPES)}")
        rows = {"width": self.width, "heads x head_dim": self.heads * self.head_width}
        for name, row in (rows | {"ffn": self.ffn}).items():
            if row % block:
                raise ShapeError(
                    f"{name}: {row} is not a multiple of {block}, as {file_type} needs"
                )


PRESETS: dict[str, ModelShape] = {
    # The published sizes of Qwen3-0.6B: a model people really run, for benchmarks.
    "qwen3-0.6b": ModelShape(
        layers=28,
        width=1024,
        heads=16,
        kv_heads=8,
        head_dim=128,
        ffn=3072,
        vocab=151_936,
        context=40_960,
    ),
    # So little arithmetic that what is measured is everything around it.
    "toy": ModelShape(layers=2, width=128, heads=4, kv_heads=2, ffn=256, vocab=2048, context=8192),
    # As unlike the others as it can be: other architecture, tokens, markers and tool format.
    "tiny-llama": ModelShape(
        arch="llama",
        layers=3,
        width=96,
        heads=6,
        kv_heads=3,
        ffn=192,
        vocab=1500,
        context=2048,
        tied=False,
    ),
}

"""Gemma 3's shape: most layers see only a window of tokens, every `full_every`-th sees all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tools.make_gguf.shape import Metadata, ModelShape, attention, check_least, ends, feed_forward
from tools.make_gguf.tensor import Tensor, ones

__all__ = ["SlidingShape"]


@dataclass(frozen=True)
class SlidingShape(ModelShape):
    """`window` in tokens. llama.cpp drops cells behind it, so that a sequence that has grown past
    it cannot be cut back to a prefix: what such models exist here to test."""

    arch: str = "gemma3"
    layers: int = 4
    window: int = 64
    full_every: int = 2

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("gemma3",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "window", "full_every")

    @property
    def has_head_norms(self) -> bool:
        return True

    def metadata(self) -> Metadata:
        return super().metadata() | {
            "attention.sliding_window": self.window,
            "attention.sliding_window_pattern": self.full_every,
        }

    def tensors(self) -> Iterator[Tensor]:
        yield from ends(self.vocab, self.width, is_tied=self.tied)
        for layer in range(self.layers):
            yield from attention(self, layer)
            yield Tensor(f"blk.{layer}.post_attention_norm.weight", (self.width,), ones)
            yield from feed_forward(layer, self.width, self.ffn)
            yield Tensor(f"blk.{layer}.post_ffw_norm.weight", (self.width,), ones)

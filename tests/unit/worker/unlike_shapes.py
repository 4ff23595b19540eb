"""Shapes that llama.cpp lays out otherwise than the ones tools/make_gguf knows: what is asked of
them is only what memory they take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tools.make_gguf.shape import Metadata, ModelShape, attention, ends
from tools.make_gguf.tensor import Tensor, normal, ones

__all__ = ["ExpertsShape", "FusedShape"]


@dataclass(frozen=True)
class ExpertsShape(ModelShape):
    """Qwen 3 MoE: of each layer's experts a few compute a token."""

    arch: str = "qwen3moe"
    experts: int = 16
    used: int = 4
    expert_ffn: int = 128

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("qwen3moe",)

    @property
    def has_head_norms(self) -> bool:
        return True

    def metadata(self) -> Metadata:
        return super().metadata() | {
            "expert_count": self.experts,
            "expert_used_count": self.used,
            "expert_feed_forward_length": self.expert_ffn,
        }

    def tensors(self) -> Iterator[Tensor]:
        yield from ends(self.vocab, self.width, is_tied=self.tied)
        wide, narrow = (self.experts, self.expert_ffn, self.width), normal(self.width**-0.5)
        for layer in range(self.layers):
            blk = f"blk.{layer}"
            yield from attention(self, layer)
            yield Tensor(f"{blk}.ffn_norm.weight", (self.width,), ones)
            inputs = (self.experts, self.width)
            yield Tensor(f"{blk}.ffn_gate_inp.weight", inputs, narrow, is_exact=True)
            yield Tensor(f"{blk}.ffn_gate_exps.weight", wide, narrow)
            yield Tensor(f"{blk}.ffn_up_exps.weight", wide, narrow)
            down = (self.experts, self.width, self.expert_ffn)
            yield Tensor(f"{blk}.ffn_down_exps.weight", down, normal(self.expert_ffn**-0.5))


@dataclass(frozen=True)
class FusedShape(ModelShape):
    """Phi 3: query, key and value in one matrix, gate and up in another."""

    arch: str = "phi3"

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("phi3",)

    def tensors(self) -> Iterator[Tensor]:
        yield from ends(self.vocab, self.width, is_tied=False)
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        narrow = normal(self.width**-0.5)
        for layer in range(self.layers):
            blk = f"blk.{layer}"
            yield Tensor(f"{blk}.attn_norm.weight", (self.width,), ones)
            yield Tensor(f"{blk}.attn_qkv.weight", (queries + 2 * keys, self.width), narrow)
            yield Tensor(f"{blk}.attn_output.weight", (self.width, queries), narrow)
            yield Tensor(f"{blk}.ffn_norm.weight", (self.width,), ones)
            yield Tensor(f"{blk}.ffn_up.weight", (2 * self.ffn, self.width), narrow)
            yield Tensor(f"{blk}.ffn_down.weight", (self.width, self.ffn), normal(self.ffn**-0.5))

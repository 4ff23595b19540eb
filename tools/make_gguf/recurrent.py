"""Shapes whose memory is a state that each token changes, not a row of cells: Mamba 2 alone, and
in layers between attention, as in Granite 4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tools.make_gguf.shape import (
    MIN_VOCAB,
    NORM_EPS,
    Metadata,
    ModelShape,
    ShapeError,
    attention,
    check_least,
    check_rows,
    ends,
    feed_forward,
)
from tools.make_gguf.tensor import Tensor, decays, normal, ones, time_steps

__all__ = ["HybridShape", "MambaShape", "Mixer"]


@dataclass(frozen=True)
class Mixer:
    """The state-space part of a layer, twice as wide inside as out. `state` numbers per channel,
    `kernel` tokens in the convolution before it; a group of heads shares its projections."""

    state: int = 32
    heads: int = 8
    groups: int = 1
    kernel: int = 4

    def __post_init__(self) -> None:
        check_least(self, 1, "state", "heads", "groups")
        check_least(self, 2, "kernel")
        if self.heads % self.groups:
            raise ShapeError(f"heads: {self.heads} is not a multiple of groups {self.groups}")

    def check_width(self, width: int) -> None:
        """Raise ShapeError where a layer of this width cannot be split into the heads."""
        if 2 * width % self.heads:
            raise ShapeError(f"width: twice {width} is not a multiple of mixer heads {self.heads}")

    def metadata(self, width: int) -> Metadata:
        return {
            "ssm.conv_kernel": self.kernel,
            "ssm.inner_size": 2 * width,
            "ssm.state_size": self.state,
            "ssm.time_step_rank": self.heads,
            "ssm.group_count": self.groups,
        }

    def tensors(self, layer: int, width: int) -> Iterator[Tensor]:
        blk, inner = f"blk.{layer}", 2 * width
        mixed = inner + 2 * self.groups * self.state
        yield Tensor(f"{blk}.attn_norm.weight", (width,), ones)
        rows = inner + mixed + self.heads
        yield Tensor(f"{blk}.ssm_in.weight", (rows, width), normal(width**-0.5))
        conv = normal(self.kernel**-0.5)
        yield Tensor(f"{blk}.ssm_conv1d.weight", (mixed, self.kernel), conv, is_exact=True)
        yield Tensor(f"{blk}.ssm_conv1d.bias", (mixed,), normal(0.1))
        yield Tensor(f"{blk}.ssm_dt.bias", (self.heads,), time_steps)
        yield Tensor(f"{blk}.ssm_a", (self.heads, 1), decays, is_exact=True)
        yield Tensor(f"{blk}.ssm_d", (self.heads, 1), ones, is_exact=True)
        group = (self.groups, inner // self.groups)
        yield Tensor(f"{blk}.ssm_norm.weight", group, ones, is_exact=True)
        yield Tensor(f"{blk}.ssm_out.weight", (width, inner), normal(inner**-0.5))


@dataclass(frozen=True)
class MambaShape:
    """Mamba 2: mixers alone, no attention and no feed-forward network."""

    arch: str = "mamba2"
    layers: int = 4
    width: int = 128
    vocab: int = 2048
    context: int = 4096
    tied: bool = True
    mixer: Mixer = Mixer()

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("mamba2",)

    def __post_init__(self) -> None:
        if self.arch not in self.ARCHITECTURES:
            raise ShapeError(f"arch: {self.arch!r} is none of {', '.join(self.ARCHITECTURES)}")
        check_least(self, 1, "layers", "width", "context")
        check_least(self, MIN_VOCAB, "vocab")
        self.mixer.check_width(self.width)

    def check_type(self, file_type: str) -> None:
        check_rows({"width": self.width}, file_type)

    def metadata(self) -> Metadata:
        return {
            "block_count": self.layers,
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": NORM_EPS,
        } | self.mixer.metadata(self.width)

    def tensors(self) -> Iterator[Tensor]:
        yield from ends(self.vocab, self.width, is_tied=self.tied)
        for layer in range(self.layers):
            yield from self.mixer.tensors(layer, self.width)


@dataclass(frozen=True)
class HybridShape(ModelShape):
    """Every `attention_every`-th layer attends, the others are mixers; all have a feed-forward
    network. llama.cpp keeps cells for the first kind and a state for the second."""

    arch: str = "granitehybrid"
    layers: int = 4
    attention_every: int = 2
    mixer: Mixer = Mixer()

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("granitehybrid",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 2, "attention_every")
        self.mixer.check_width(self.width)
        if self.layers < self.attention_every:
            raise ShapeError(f"layers: {self.layers} are too few for attention in any of them")

    def attends(self, layer: int) -> bool:
        return layer % self.attention_every == self.attention_every - 1

    def metadata(self) -> Metadata:
        # No keys in a layer is how its kind is told.
        keys = [self.kv_heads if self.attends(layer) else 0 for layer in range(self.layers)]
        return (
            super().metadata() | {"attention.head_count_kv": keys} | self.mixer.metadata(self.width)
        )

    def tensors(self) -> Iterator[Tensor]:
        yield from ends(self.vocab, self.width, is_tied=self.tied)
        for layer in range(self.layers):
            if self.attends(layer):
                yield from attention(self, layer)
            else:
                yield from self.mixer.tensors(layer, self.width)
            yield from feed_forward(layer, self.width, self.ffn)

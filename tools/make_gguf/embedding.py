"""Sizes of models that embed or rank: a BERT, and a decoder whose last token speaks for a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from tools.make_gguf.shape import (
    EMBEDDING_STD,
    MIN_VOCAB,
    Metadata,
    ModelShape,
    ShapeError,
    check_least,
    check_rows,
)
from tools.make_gguf.tensor import Tensor, normal, ones

__all__ = ["BertShape", "LastTokenShape", "Pooling"]

Pooling = Literal["mean", "cls", "last", "rank"]
_POOLINGS: dict[Pooling, int] = {"mean": 1, "cls": 2, "last": 3, "rank": 4}
_SMALL = normal(0.1)  # biases


@dataclass(frozen=True)
class BertShape:
    """An encoder with learnt positions. `pooling` "rank" adds a classifier: a reranker."""

    arch: str = "bert"
    layers: int = 2
    width: int = 64
    heads: int = 4
    ffn: int = 128
    vocab: int = 1024
    context: int = 512
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        if self.arch != "bert":
            raise ShapeError(f"arch: {self.arch!r} is not bert")
        if self.pooling not in _POOLINGS:
            raise ShapeError(f"pooling: {self.pooling!r} is none of {', '.join(_POOLINGS)}")
        check_least(self, 1, "layers", "width", "heads", "ffn", "context")
        check_least(self, MIN_VOCAB, "vocab")
        if self.width % self.heads:
            raise ShapeError(f"width: {self.width} is not a multiple of heads {self.heads}")

    def check_type(self, file_type: str) -> None:
        check_rows({"width": self.width, "ffn": self.ffn}, file_type)

    def metadata(self) -> Metadata:
        return {
            "block_count": self.layers,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.heads,
            "attention.layer_norm_epsilon": 1e-12,
            "attention.causal": False,
            "pooling_type": _POOLINGS[self.pooling],
        }

    def tensors(self) -> Iterator[Tensor]:
        width = self.width
        spread = normal(EMBEDDING_STD / width**0.5)
        yield Tensor("token_embd.weight", (self.vocab, width), spread)
        # Rows that are added to a float32 state are float32 in real files too.
        yield Tensor("token_types.weight", (2, width), spread, is_exact=True)
        yield Tensor("position_embd.weight", (self.context, width), spread, is_exact=True)
        yield from _norm("token_embd_norm", width)
        for layer in range(self.layers):
            blk = f"blk.{layer}"
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                yield from _linear(f"{blk}.{part}", width, width)
            yield from _norm(f"{blk}.attn_output_norm", width)
            yield from _linear(f"{blk}.ffn_up", self.ffn, width)
            yield from _linear(f"{blk}.ffn_down", width, self.ffn)
            yield from _norm(f"{blk}.layer_output_norm", width)
        if self.pooling == "rank":
            yield from _linear("cls", width, width)
            yield from _linear("cls.output", 1, width)


@dataclass(frozen=True)
class LastTokenShape(ModelShape):
    """A causal transformer with `pooling` "last", as Qwen3-Embedding, or with "rank" a classifier
    of two labels, yes and no, as Qwen3-Reranker."""

    vocab: int = 1024
    pooling: Pooling = "last"

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("qwen3",)

    def metadata(self) -> Metadata:
        more: Metadata = {"pooling_type": _POOLINGS[self.pooling]}
        if self.pooling == "rank":
            more["classifier.output_labels"] = ["yes", "no"]
        return super().metadata() | more

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        if self.pooling == "rank":
            yield Tensor("cls.output.weight", (2, self.width), normal(self.width**-0.5))


def _linear(name: str, rows: int, columns: int) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (rows, columns), normal(columns**-0.5))
    yield Tensor(f"{name}.bias", (rows,), _SMALL)


def _norm(name: str, width: int) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (width,), ones)
    yield Tensor(f"{name}.bias", (width,), _SMALL)

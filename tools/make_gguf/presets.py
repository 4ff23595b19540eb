"""The sizes worth a name."""

from __future__ import annotations

from tools.make_gguf.embedding import BertShape, LastTokenShape
from tools.make_gguf.recurrent import HybridShape, MambaShape
from tools.make_gguf.shape import ModelShape
from tools.make_gguf.sliding import SlidingShape

__all__ = ["PRESETS"]

PRESETS: dict[str, ModelShape | MambaShape | BertShape] = {
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
    # Its messages have headers that say which channel they go to.
    "tiny-channels": ModelShape(
        arch="internlm2", layers=2, width=64, heads=4, kv_heads=2, ffn=128, vocab=1500, tied=False
    ),
    # One for each kind of memory that llama.cpp keeps besides plain cells.
    "tiny-sliding": SlidingShape(context=8192),
    "tiny-mamba": MambaShape(context=8192),
    "tiny-hybrid": HybridShape(context=8192),
    # Models that do not generate: encoders, and decoders whose last token speaks for a text.
    "tiny-bert": BertShape(),
    "tiny-bert-reranker": BertShape(pooling="rank"),
    "tiny-embedder": LastTokenShape(),
    "tiny-reranker": LastTokenShape(pooling="rank"),
}

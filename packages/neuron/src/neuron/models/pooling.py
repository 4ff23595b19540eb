"""How an embedding model's passes are laid out, decided before anything is allocated. Pure.

A pass is one llama_decode over the tokens of several texts. The parent asks to know what a load
will take, the worker to do it; both get the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["MEAN_POOLING", "PassPlan", "plan_passes", "pools_last"]

MEAN_POOLING = 1  # llama_pooling_type; for a model that does not say how it pools
_LAST, _RANK = "3", "4"

_PASS_ROWS = 512
"""Enough rows for matrix kernels to be at their best. Every row of a pass is an output: its
embedding, and where there is one, its row of logits, takes host memory."""

_LONGEST_UNASKED = 2048
"""Without a causal mask a text goes through in one pass, whose attention takes memory by its
square; longer ones are for whoever asks for them."""


class PassPlan(msgspec.Struct, frozen=True):
    """`context` tokens per text at most, `rows` tokens per pass. `is_split`: a longer text may be
    computed over several passes, because each token's state depends on earlier ones alone, and
    only the last is looked at."""

    context: int
    rows: int
    is_split: bool


def pools_last(metadata: Mapping[str, object]) -> bool:
    """Whether a model's vector, or score, is made of its last token's state alone. From a GGUF's
    scalar keys, as values or as llama.cpp prints them."""
    architecture = metadata.get("general.architecture", "")
    is_causal = str(metadata.get(f"{architecture}.attention.causal", True)).lower() == "true"
    return is_causal and str(metadata.get(f"{architecture}.pooling_type")) in (_LAST, _RANK)


def plan_passes(wanted: int, context_train: int, *, is_split: bool) -> PassPlan:
    """`wanted` tokens per text, 0 = the model's own, as far as that is cheap. Never more than the
    model was trained for: it may have no positions beyond."""
    most = context_train if is_split else min(context_train, _LONGEST_UNASKED)
    context = min(wanted, context_train) if wanted else most
    rows = _PASS_ROWS if is_split else max(context, _PASS_ROWS)
    return PassPlan(context, rows, is_split)

"""What a model is for, by what its GGUF says of itself, and whether it can do what is asked.

Pure, and asked on both sides of the wire.
"""

from __future__ import annotations

from collections.abc import Mapping

from cortex_core.errors import InvalidRequest
from cortex_core.wire import ipc

__all__ = ["check_kind", "kind_of"]

_NONE, _RANK = "0", "4"  # GGUF's pooling types

_WANTED: dict[type[ipc.Ask], ipc.ModelKind] = {
    ipc.Generate: "generate",
    ipc.Embed: "embed",
    ipc.Rank: "rank",
}
_IS: dict[ipc.ModelKind, str] = {
    "generate": "generates text, and has no pooling of its own",
    "embed": "is an embedding model, for /v1/embeddings",
    "rank": "is a reranking model, for /v1/rerank",
}
_VERB: dict[ipc.ModelKind, str] = {
    "generate": "generate text",
    "embed": "give embeddings",
    "rank": "rank documents",
}


def kind_of(metadata: Mapping[str, object]) -> ipc.ModelKind:
    """From a GGUF's scalar keys, as values or as llama.cpp prints them. A model that says how to
    pool its states, or whose tokens see what follows them, is not there to generate."""
    architecture = metadata.get("general.architecture", "")
    pooling = str(metadata.get(f"{architecture}.pooling_type", _NONE))
    if pooling == _RANK:
        return "rank"
    is_causal = str(metadata.get(f"{architecture}.attention.causal", True)).lower() == "true"
    return "embed" if pooling != _NONE or not is_causal else "generate"


def check_kind(ask: ipc.Ask, kind: ipc.ModelKind) -> None:
    """Raises InvalidRequest (`model`) where a model of this kind cannot do what is asked."""
    wanted = _WANTED.get(type(ask))
    if wanted is not None and wanted != kind:
        raise InvalidRequest(
            f"the model {ask.model!r} cannot {_VERB[wanted]}: it {_IS[kind]}", param="model"
        )

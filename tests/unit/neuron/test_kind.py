"""What a model is for, and what it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from cortex_core.errors import InvalidRequest
from cortex_core.wire import ipc
from neuron.models.kind import check_kind, kind_of

GENERATE = ipc.Generate(0, "m", "x", ipc.Sampling())
EMBED = ipc.Embed(0, "m", ["x"])
RANK = ipc.Rank(0, "m", "q", ["d"])


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({}, "generate"),
        ({"general.architecture": "qwen3"}, "generate"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 0}, "generate"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, "embed"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": "3"}, "embed"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 4}, "rank"),
        ({"general.architecture": "bert", "bert.pooling_type": 1}, "embed"),
        ({"general.architecture": "bert", "bert.attention.causal": False}, "embed"),
        ({"general.architecture": "bert", "bert.attention.causal": "false"}, "embed"),
        ({"general.architecture": "llama", "bert.pooling_type": 1}, "generate"),
    ],
)
def test_a_model_is_what_its_file_says(metadata: dict[str, Any], kind: ipc.ModelKind):
    assert kind_of(metadata) == kind


@pytest.mark.parametrize(
    ("ask", "kind"), [(GENERATE, "generate"), (EMBED, "embed"), (RANK, "rank")]
)
def test_a_model_does_what_it_is_for(ask: ipc.Ask, kind: ipc.ModelKind):
    check_kind(ask, kind)


@pytest.mark.parametrize("kind", ["generate", "embed", "rank"])
def test_every_model_has_a_vocabulary(kind: ipc.ModelKind):
    check_kind(ipc.Tokenize(0, "m", "x"), kind)
    check_kind(ipc.Detokenize(0, "m", b""), kind)


@pytest.mark.parametrize(
    ("ask", "kind", "told"),
    [
        (GENERATE, "embed", "cannot generate text: it is an embedding model"),
        (GENERATE, "rank", "cannot generate text: it is a reranking model"),
        (EMBED, "generate", "cannot give embeddings: it generates text"),
        (EMBED, "rank", "cannot give embeddings: it is a reranking model"),
        (RANK, "generate", "cannot rank documents: it generates text"),
        (RANK, "embed", "cannot rank documents: it is an embedding model"),
    ],
)
def test_what_a_model_is_not_for_is_refused_by_name(ask: ipc.Ask, kind: ipc.ModelKind, told: str):
    with pytest.raises(InvalidRequest, match=told) as refused:
        check_kind(ask, kind)
    assert refused.value.param == "model"
    assert "'m'" in refused.value.message

"""`POST /v1/rerank`, as Jina and Cohere have it: which documents answer a query best."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cortex_core.envelopes.parameters import decode_request
from cortex_core.envelopes.usage import PromptUsage
from cortex_core.errors import InvalidRequest

__all__ = [
    "MOST_DOCUMENTS",
    "Document",
    "RankedDocument",
    "RerankRequest",
    "Reranking",
    "decode_rerank_request",
]

MOST_DOCUMENTS = 2048


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str


class RerankRequest(msgspec.Struct, frozen=True):
    """`top_n`: only the best so many; `None`: all."""

    model: str
    query: str
    documents: list[str | Document]
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool = False

    @property
    def texts(self) -> list[str]:
        return [item if isinstance(item, str) else item.text for item in self.documents]


def decode_rerank_request(body: bytes) -> tuple[RerankRequest, list[str]]:
    """The checked request, and no names: every parameter has an effect.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_request(body, RerankRequest)
    for name in ("model", "query", "documents"):
        if not getattr(request, name):
            raise InvalidRequest(f"{name}: must not be empty", param=name)
    if len(request.documents) > MOST_DOCUMENTS:
        raise InvalidRequest(
            f"documents: at most {MOST_DOCUMENTS} in one request, got {len(request.documents)}",
            param="documents",
        )
    return request, ignored


# answers


class RankedDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """`index` is the document's in the request."""

    index: int
    relevance_score: float
    document: Document | None = None


class Reranking(msgspec.Struct, frozen=True):
    """`results`: the most relevant first."""

    model: str
    results: list[RankedDocument]
    usage: PromptUsage

"""`POST /v1/embeddings`: a vector for each input."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cortex_core.envelopes.inputs import Inputs, each_input
from cortex_core.envelopes.parameters import decode_request
from cortex_core.envelopes.usage import PromptUsage
from cortex_core.errors import InvalidRequest

__all__ = [
    "IGNORED_PARAMETERS",
    "MOST_INPUTS",
    "Embedding",
    "EmbeddingList",
    "EmbeddingRequest",
    "decode_embedding_request",
]

MOST_INPUTS = 2048  # the API's own bound
IGNORED_PARAMETERS = frozenset({"user"})
"""Defined by the vendor, without effect on what a local model answers."""


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """`dimensions`: the first so many numbers of each vector, at length 1 again; `None`: all."""

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        return each_input(self.input, "input", most=MOST_INPUTS)


def decode_embedding_request(body: bytes) -> tuple[EmbeddingRequest, list[str]]:
    """The checked request and the names of the parameters that have no effect.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_request(body, EmbeddingRequest, IGNORED_PARAMETERS)
    if not request.model:
        raise InvalidRequest("model: must not be empty", param="model")
    each_input(request.input, "input", most=MOST_INPUTS)
    return request, ignored


# answers


class Embedding(msgspec.Struct, frozen=True):
    """`embedding`: a list of numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingList(msgspec.Struct, frozen=True):
    """`data`: an Embedding each, already as JSON."""

    data: list[msgspec.Raw]
    model: str
    usage: PromptUsage
    object: Literal["list"] = "list"

"""`POST /v1/embeddings` and `POST /v1/rerank`: the routes of models that do not generate."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.routing import Route

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_embeddings import (
    EmbeddingList,
    EmbeddingRequest,
    decode_embedding_request,
)
from cortex_core.envelopes.rerank import (
    Document,
    RankedDocument,
    Reranking,
    RerankRequest,
    decode_rerank_request,
)
from cortex_core.envelopes.usage import PromptUsage
from cortex_core.wire import ipc
from neuron.asking import ask
from neuron.generation import ModelRegistry
from neuron.packed import encode_vectors
from neuron.routes.endpoint import Endpoint
from neuron.routes.exchange import Exchange, Record

__all__ = ["EmbeddingEndpoint", "RerankEndpoint", "routes"]

_NUMBERS_AT_ONCE = 16_384  # about a millisecond's worth


def routes(
    registry: ModelRegistry, config: NeuronConfig, record: Record | None = None
) -> list[Route]:
    embed = EmbeddingEndpoint(registry, config, record)
    rank = RerankEndpoint(registry, config, record)
    return [
        Route("/v1/embeddings", embed, methods=["POST"], name="embeddings"),
        Route("/v1/rerank", rank, methods=["POST"], name="rerank"),
    ]


class EmbeddingEndpoint(Endpoint):
    async def answer(self, exchange: Exchange, body: bytes) -> None:
        request, exchange.ignored = decode_embedding_request(body)
        exchange.model = request.model
        await exchange.while_connected(self._respond(exchange, request))

    async def _respond(self, exchange: Exchange, request: EmbeddingRequest) -> None:
        question = ipc.Embed(0, request.model, request.inputs, request.dimensions)
        reply = await ask(self.registry, question)
        assert isinstance(reply.result, ipc.Vectors)
        exchange.usage = reply.usage
        data: list[msgspec.Raw] = []
        breath = max(_NUMBERS_AT_ONCE // reply.result.width, 1)
        for encoded in encode_vectors(reply.result, request.encoding_format):
            data.append(encoded)
            if len(data) % breath == 0:
                await asyncio.sleep(0)
        await exchange.respond(EmbeddingList(data, request.model, PromptUsage.of(reply.usage)))


class RerankEndpoint(Endpoint):
    async def answer(self, exchange: Exchange, body: bytes) -> None:
        request, exchange.ignored = decode_rerank_request(body)
        exchange.model = request.model
        await exchange.while_connected(self._respond(exchange, request))

    async def _respond(self, exchange: Exchange, request: RerankRequest) -> None:
        texts = request.texts
        reply = await ask(self.registry, ipc.Rank(0, request.model, request.query, texts))
        assert isinstance(reply.result, ipc.Scores)
        exchange.usage = reply.usage
        # Equal ones stay in the order they came in.
        ranked = sorted(enumerate(reply.result.values), key=lambda item: -item[1])
        results = [
            RankedDocument(
                index, score, Document(texts[index]) if request.return_documents else None
            )
            for index, score in ranked[: request.top_n]
        ]
        await exchange.respond(Reranking(request.model, results, PromptUsage.of(reply.usage)))

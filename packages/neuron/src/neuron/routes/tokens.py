"""`POST /tokenize` and `POST /detokenize`: what a model reads of a text, and back."""

from __future__ import annotations

from starlette.routing import Route

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.tokens import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    decode_detokenize_request,
    decode_tokenize_request,
)
from cortex_core.wire import ipc
from neuron.asking import ask
from neuron.generation import ChatService, ModelRegistry
from neuron.packed import encode_tokens
from neuron.routes.endpoint import Endpoint, joined
from neuron.routes.exchange import Exchange, Record

__all__ = ["DetokenizeEndpoint", "TokenizeEndpoint", "routes"]


def routes(
    registry: ModelRegistry, config: NeuronConfig, record: Record | None = None
) -> list[Route]:
    tokenize = TokenizeEndpoint(registry, config, record)
    detokenize = DetokenizeEndpoint(registry, config, record)
    return [
        Route("/tokenize", tokenize, methods=["POST"], name="tokenize"),
        Route("/detokenize", detokenize, methods=["POST"], name="detokenize"),
    ]


class TokenizeEndpoint(Endpoint):
    def __init__(
        self, registry: ModelRegistry, config: NeuronConfig, record: Record | None = None
    ) -> None:
        super().__init__(registry, config, record)
        self._chats = ChatService(registry, config)

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        request, exchange.ignored = decode_tokenize_request(body)
        exchange.model = request.model
        await exchange.while_connected(self._respond(exchange, request))

    async def _respond(self, exchange: Exchange, request: TokenizeRequest) -> None:
        reply = await ask(self.registry, await self._question(request))
        assert isinstance(reply.result, ipc.Tokens)
        exchange.usage = reply.usage
        tokens = await joined(encode_tokens(reply.result))
        await exchange.respond(Tokenized(len(reply.result.ids) // 4, tokens))

    async def _question(self, request: TokenizeRequest) -> ipc.Tokenize:
        text, ends = request.content or "", "none"
        if request.chat is not None:
            text, ends = (await self._chats.prompt(request.chat)).text, "prompt"
        if request.add_special is not None and not (request.add_special and ends == "prompt"):
            ends = "all" if request.add_special else "none"
        return ipc.Tokenize(
            0, request.model, text, ends, request.parse_special, request.with_pieces
        )


class DetokenizeEndpoint(Endpoint):
    async def answer(self, exchange: Exchange, body: bytes) -> None:
        request, exchange.ignored = decode_detokenize_request(body)
        exchange.model = request.model
        await exchange.while_connected(self._respond(exchange, request))

    async def _respond(self, exchange: Exchange, request: DetokenizeRequest) -> None:
        question = ipc.Detokenize(0, request.model, ipc.pack_ids(request.tokens))
        reply = await ask(self.registry, question)
        assert isinstance(reply.result, ipc.Text)
        exchange.usage = reply.usage
        await exchange.respond(Detokenized(reply.result.data.decode("utf-8", "replace")))

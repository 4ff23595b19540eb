"""`POST /v1/chat/render`: the prompt that a chat request comes to and its tokens, and no answer."""

from __future__ import annotations

from typing import Literal

from starlette.datastructures import QueryParams
from starlette.routing import Route

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import (
    ChatRequest,
    decode_chat_request,
    without_effect_on_prompt,
)
from cortex_core.envelopes.tokens import Counted, RenderedChat
from cortex_core.errors import InvalidRequest
from cortex_core.wire import ipc
from neuron.asking import ask
from neuron.generation import ChatService, ModelRegistry
from neuron.packed import encode_tokens
from neuron.routes.endpoint import Endpoint, joined
from neuron.routes.exchange import Exchange, Record

__all__ = ["RenderEndpoint", "routes"]

Wanted = Literal["true", "false", "pieces"]
_WANTED: dict[str, Wanted] = {"true": "true", "false": "false", "pieces": "pieces"}


def routes(
    registry: ModelRegistry, config: NeuronConfig, record: Record | None = None
) -> list[Route]:
    endpoint = RenderEndpoint(registry, config, record)
    return [Route("/v1/chat/render", endpoint, methods=["POST"], name="render")]


class RenderEndpoint(Endpoint):
    """Refuses what the chat route refuses before it asks a worker. The query's `tokens` says what
    to tell of them: their ids (true), ids and text (pieces), or only how many (false)."""

    def __init__(
        self, registry: ModelRegistry, config: NeuronConfig, record: Record | None = None
    ) -> None:
        super().__init__(registry, config, record)
        self._chats = ChatService(registry, config)

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        request, exchange.ignored = decode_chat_request(body)
        exchange.model = request.model
        await exchange.while_connected(self._respond(exchange, request, _wanted(exchange.query)))

    async def _respond(self, exchange: Exchange, request: ChatRequest, wanted: Wanted) -> None:
        rendered = await self._chats.render(request)
        unread = without_effect_on_prompt(request)
        exchange.ignored = list(dict.fromkeys(exchange.ignored + unread + rendered.ignored))
        prompt = rendered.prompt
        question = ipc.Tokenize(
            0, request.model, prompt.text, "prompt", with_pieces=wanted == "pieces"
        )
        reply = await ask(self.registry, question)
        assert isinstance(reply.result, ipc.Tokens)
        exchange.usage = reply.usage
        count = len(reply.result.ids) // 4
        if wanted == "false":
            await exchange.respond(Counted(count))
            return
        tokens = await joined(encode_tokens(reply.result))
        await exchange.respond(RenderedChat(prompt.text, count, tokens, prompt.warnings))


def _wanted(query: QueryParams) -> Wanted:
    given = query.get("tokens", "true")
    wanted = _WANTED.get(given)
    if wanted is None:
        raise InvalidRequest(
            f"tokens: expected true, false or pieces, got {given[:40]!r}", param="tokens"
        )
    return wanted

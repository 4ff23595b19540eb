"""`POST /v1/chat/completions`: one JSON answer, or a stream of server-sent events.

Raw ASGI, because a stream then costs one join and one send per step, and because a client who
leaves is noticed while nothing is being sent.
"""

from __future__ import annotations

import time

from starlette.routing import Route

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import (
    ChatCompletion,
    ChatRequest,
    Choice,
    UsageReport,
    decode_chat_request,
)
from cortex_core.envelopes.sampling import without_effect
from neuron.chat.answer import collect
from neuron.chat.chunks import ChunkEncoder
from neuron.chat.pieces import Piece
from neuron.generation import ChatService, ChatStream, ModelRegistry
from neuron.routes.endpoint import Endpoint, new_id
from neuron.routes.exchange import Exchange, Record

__all__ = ["ChatEndpoint", "routes"]


def routes(
    registry: ModelRegistry, config: NeuronConfig, record: Record | None = None
) -> list[Route]:
    endpoint = ChatEndpoint(registry, config, record)
    return [Route("/v1/chat/completions", endpoint, methods=["POST"], name="chat")]


class ChatEndpoint(Endpoint):
    def __init__(
        self,
        registry: ModelRegistry,
        config: NeuronConfig,
        record: Record | None = None,
        **signs_of_life: float,
    ) -> None:
        super().__init__(registry, config, record, **signs_of_life)
        self._service = ChatService(registry, config)

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        request, ignored = decode_chat_request(body)
        exchange.model, exchange.is_stream = request.model, request.stream
        exchange.ignored = ignored + _without_effect(request)
        answer = self._stream if request.stream else self._respond
        await exchange.while_connected(answer(exchange, request))

    async def _open(self, exchange: Exchange, request: ChatRequest) -> ChatStream:
        given = exchange.headers.get("x-include-thinking", "").lower()
        chat = await self._service.open(
            request,
            include_thinking=given in ("1", "true", "yes"),
            precedence=exchange.precedence,
        )
        exchange.ignored += chat.ignored
        return chat

    async def _stream(self, exchange: Exchange, request: ChatRequest) -> None:
        chunks = ChunkEncoder(new_id("chatcmpl"), int(time.time()), request.model)
        exchange.opening = chunks.opening()
        async with (
            exchange.kept_alive(self.silence_s, self.keep_alive_s),
            await self._open(exchange, request) as chat,
        ):
            ending = None
            while ending is None:
                data = chunks.pieces(await _read(exchange, chat))
                ending = chat.answer.ending
                if ending is not None:
                    data += chunks.ending(ending, include_usage=request.includes_usage)
                if data or not exchange.is_open:
                    await exchange.write(data, last=ending is not None)

    async def _respond(self, exchange: Exchange, request: ChatRequest) -> None:
        created = int(time.time())
        pieces: list[Piece] = []
        async with await self._open(exchange, request) as chat:
            while (ending := chat.answer.ending) is None:
                pieces += await _read(exchange, chat)
        await exchange.respond(
            ChatCompletion(
                id=new_id("chatcmpl"),
                created=created,
                model=request.model,
                choices=[Choice(0, collect(pieces), ending.finish_reason)],
                usage=UsageReport.of(ending.usage),
            ),
        )


async def _read(exchange: Exchange, chat: ChatStream) -> list[Piece]:
    pieces = await chat.read()
    if pieces:
        exchange.saw_text()
    exchange.started = chat.answer.started
    if chat.answer.ending is not None:
        exchange.usage = chat.answer.ending.usage
    return pieces


def _without_effect(request: ChatRequest) -> list[str]:
    """Parameters that this API knows but this request gives nothing to act on."""
    ignored = ["tool_choice"] if request.tool_choice is not None and not request.tools else []
    return ignored + without_effect(request)

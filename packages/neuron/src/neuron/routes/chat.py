"""`POST /v1/chat/completions`: one JSON answer, or a stream of server-sent events.

Raw ASGI, because a stream then costs one join and one send per step, and because a client who
leaves is noticed while nothing is being sent.
"""

from __future__ import annotations

import time

import msgspec
from starlette.routing import Route

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.logprobs import chat_logprobs
from cortex_core.envelopes.openai_chat import (
    ChatCompletion,
    ChatRequest,
    Choice,
    UsageReport,
    decode_chat_request,
)
from cortex_core.envelopes.sampling import without_effect
from neuron.chat.answer import Ending, collect
from neuron.chat.chunks import ChunkEncoder
from neuron.chat.pieces import Piece, Text
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
        name, created = new_id("chatcmpl"), int(time.time())
        chunks = [ChunkEncoder(name, created, request.model, n) for n in range(request.n)]
        exchange.opening = b"".join(each.opening() for each in chunks)
        async with (
            exchange.kept_alive(self.silence_s, self.keep_alive_s),
            await self._open(exchange, request) as chat,
        ):
            while not chat.is_ended:
                data = b""
                for index, pieces in await _read(exchange, chat):
                    data += chunks[index].pieces(pieces)
                    ending = chat.answers[index].ending
                    if ending is not None:
                        data += chunks[index].ending(ending)
                if chat.is_ended:
                    data += chunks[0].closing(chat.usage if request.includes_usage else None)
                if data or not exchange.is_open:
                    await exchange.write(data, last=chat.is_ended)

    async def _respond(self, exchange: Exchange, request: ChatRequest) -> None:
        created = int(time.time())
        pieces: list[list[Piece]] = [[] for _ in range(request.n)]
        async with await self._open(exchange, request) as chat:
            while not chat.is_ended:
                for index, some in await _read(exchange, chat):
                    pieces[index] += some
        await exchange.respond(
            ChatCompletion(
                id=new_id("chatcmpl"),
                created=created,
                model=request.model,
                choices=[
                    _choice(index, pieces[index], answer.ending, request)
                    for index, answer in enumerate(chat.answers)
                ],
                usage=UsageReport.of(chat.usage),
            ),
        )


def _choice(index: int, pieces: list[Piece], ending: Ending | None, request: ChatRequest) -> Choice:
    assert ending is not None, "all answers have ended"
    logprobs = msgspec.UNSET
    if request.logprobs:
        texts = (piece for piece in pieces if isinstance(piece, Text))
        logprobs = chat_logprobs(score for text in texts for score in text.scores)
    stop = ending.stop or msgspec.UNSET
    return Choice(index, collect(pieces), ending.finish_reason, logprobs, stop)


async def _read(exchange: Exchange, chat: ChatStream) -> list[tuple[int, list[Piece]]]:
    came = await chat.read()
    if any(pieces for _, pieces in came):
        exchange.saw_text()
    exchange.started = chat.started
    if chat.is_ended:
        exchange.usage = chat.usage
    return came


def _without_effect(request: ChatRequest) -> list[str]:
    """Parameters that this API knows but this request gives nothing to act on."""
    ignored = ["tool_choice"] if request.tool_choice is not None and not request.tools else []
    if request.parallel_tool_calls is not None and not request.offered_tools:
        ignored.append("parallel_tool_calls")
    return ignored + without_effect(request)

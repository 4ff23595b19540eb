"""`POST /v1/completions`: one JSON answer, or a stream of server-sent events."""

from __future__ import annotations

import time

import msgspec
from starlette.routing import Route

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.logprobs import TextOffsets, completion_logprobs
from cortex_core.envelopes.openai_completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionRequest,
    decode_completion_request,
)
from cortex_core.envelopes.usage import UsageReport
from cortex_core.wire import sse
from neuron.completion import ChoicePiece, ChoiceStreams, CompletionService
from neuron.generation import ModelRegistry
from neuron.routes.endpoint import Endpoint, new_id
from neuron.routes.exchange import Exchange, Record

__all__ = ["CompletionEndpoint", "routes"]

_encode = msgspec.json.Encoder().encode


def routes(
    registry: ModelRegistry, config: NeuronConfig, record: Record | None = None
) -> list[Route]:
    endpoint = CompletionEndpoint(registry, config, record)
    return [Route("/v1/completions", endpoint, methods=["POST"], name="completions")]


class CompletionEndpoint(Endpoint):
    def __init__(
        self,
        registry: ModelRegistry,
        config: NeuronConfig,
        record: Record | None = None,
        **signs_of_life: float,
    ) -> None:
        super().__init__(registry, config, record, **signs_of_life)
        self._service = CompletionService(registry)

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        request, exchange.ignored = decode_completion_request(body)
        exchange.model, exchange.is_stream = request.model, request.stream
        answer = self._stream if request.stream else self._respond
        await exchange.while_connected(answer(exchange, request))

    async def _open(self, exchange: Exchange, request: CompletionRequest) -> ChoiceStreams:
        return await self._service.open(request, exchange.precedence)

    async def _stream(self, exchange: Exchange, request: CompletionRequest) -> None:
        stream_id, created = new_id("cmpl"), int(time.time())
        offsets: dict[int, TextOffsets] = {}

        def event(choices: list[CompletionChoice], usage: UsageReport | None = None) -> bytes:
            chunk = CompletionChunk(
                stream_id, created, request.model, choices, usage or msgspec.UNSET
            )
            return sse.encode(_encode(chunk))

        def choice(piece: ChoicePiece) -> CompletionChoice:
            logprobs = None
            if piece.scores:
                counted = offsets.setdefault(piece.index, TextOffsets())
                logprobs = completion_logprobs(piece.scores, counted)
            return CompletionChoice(piece.text, piece.index, piece.finish_reason, logprobs)

        async with (
            exchange.kept_alive(self.silence_s, self.keep_alive_s),
            await self._open(exchange, request) as choices,
        ):
            while not choices.is_ended:
                pieces = await _read(exchange, choices)
                data = b"".join(event([choice(piece)]) for piece in pieces)
                if choices.is_ended:
                    if request.includes_usage:
                        data += event([], UsageReport.of(choices.usage))
                    data += sse.DONE
                if data:
                    await exchange.write(data, last=choices.is_ended)

    async def _respond(self, exchange: Exchange, request: CompletionRequest) -> None:
        created = int(time.time())
        pieces: dict[int, list[ChoicePiece]] = {}
        async with await self._open(exchange, request) as choices:
            while not choices.is_ended:
                for piece in await _read(exchange, choices):
                    pieces.setdefault(piece.index, []).append(piece)
        await exchange.respond(
            Completion(
                id=new_id("cmpl"),
                created=created,
                model=request.model,
                choices=[_choice(pieces[index], request) for index in sorted(pieces)],
                usage=UsageReport.of(choices.usage),
            )
        )


def _choice(pieces: list[ChoicePiece], request: CompletionRequest) -> CompletionChoice:
    """All of one choice."""
    last = pieces[-1]
    logprobs = None
    if request.logprobs is not None:
        logprobs = completion_logprobs((s for piece in pieces for s in piece.scores), TextOffsets())
    text = "".join(piece.text for piece in pieces)
    return CompletionChoice(text, last.index, last.finish_reason, logprobs)


async def _read(exchange: Exchange, choices: ChoiceStreams) -> list[ChoicePiece]:
    """Pieces that say something."""
    came = await choices.read()
    pieces = [piece for piece in came if piece.text or piece.finish_reason or piece.scores]
    if pieces:
        exchange.saw_text()
    exchange.started = choices.started
    if choices.is_ended:
        exchange.usage = choices.usage
    return pieces

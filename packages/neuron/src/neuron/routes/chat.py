"""`POST /v1/chat/completions`: one JSON answer, or a stream of server-sent events.

Raw ASGI, because a stream then costs one join and one send per step, and because a client who
leaves is noticed while nothing is being sent.
"""

from __future__ import annotations

import secrets
import time

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import (
    ChatCompletion,
    ChatRequest,
    Choice,
    UsageReport,
    decode_chat_request,
)
from cortex_core.errors import CortexError, InternalError
from neuron import logs
from neuron.chat.answer import collect
from neuron.chat.chunks import ChunkEncoder
from neuron.chat.pieces import Piece
from neuron.generation import ChatService, ChatStream, ModelRegistry
from neuron.routes.exchange import ClientGone, Exchange, Record

__all__ = ["ChatEndpoint", "routes"]

_log = logs.get(__name__)

_SILENCE_S = 2.0
_KEEP_ALIVE_S = 1.0


def routes(
    registry: ModelRegistry, config: NeuronConfig, record: Record | None = None
) -> list[Route]:
    endpoint = ChatEndpoint(registry, config, record)
    return [Route("/v1/chat/completions", endpoint, methods=["POST"], name="chat")]


class ChatEndpoint:
    """The ASGI application behind the route. It answers its errors itself."""

    def __init__(
        self,
        registry: ModelRegistry,
        config: NeuronConfig,
        record: Record | None = None,
        *,
        silence_s: float = _SILENCE_S,
        keep_alive_s: float = _KEEP_ALIVE_S,
    ) -> None:
        self._service = ChatService(registry, config)
        self._node = config.name or None
        self._record = record
        self._silence_s = silence_s
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._node, self._record)
        try:
            request, ignored = decode_chat_request(await exchange.read_body())
            exchange.model, exchange.is_stream = request.model, request.stream
            exchange.ignored = ignored + _without_effect(request)
            answer = self._stream if request.stream else self._respond
            await exchange.while_connected(answer(exchange, request))
            exchange.end("ok")
        except ClientGone:
            exchange.end("client_gone")
        except CortexError as error:
            await exchange.fail(error)
        except Exception:
            _log.exception("unforeseen", request=exchange.headers.get("x-request-id"))
            await exchange.fail(InternalError("an internal error; the neuron's log has the cause"))

    async def _open(self, exchange: Exchange, request: ChatRequest) -> ChatStream:
        given = exchange.headers.get("x-include-thinking", "").lower()
        return await self._service.open(
            request,
            include_thinking=given in ("1", "true", "yes"),
            precedence=exchange.precedence,
        )

    async def _stream(self, exchange: Exchange, request: ChatRequest) -> None:
        chunks = ChunkEncoder(_new_id(), int(time.time()), request.model)
        options = request.stream_options
        include_usage = options is not None and options.include_usage
        exchange.opening = chunks.opening()
        async with (
            exchange.kept_alive(self._silence_s, self._keep_alive_s),
            await self._open(exchange, request) as chat,
        ):
            ending = None
            while ending is None:
                data = chunks.pieces(await _read(exchange, chat))
                ending = chat.answer.ending
                if ending is not None:
                    data += chunks.ending(ending, include_usage=include_usage)
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
                id=_new_id(),
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
    ignored = []
    if request.tool_choice is not None and not request.tools:
        ignored.append("tool_choice")
    if request.stream_options is not None and not request.stream:
        ignored.append("stream_options")
    elif request.stream_options is not None and request.stream_options.include_obfuscation:
        ignored.append("stream_options.include_obfuscation")
    return ignored


def _new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"

"""What every route has in common whose answer comes from a worker: the exchange around it, and
what becomes of an error."""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable

import msgspec
from starlette.types import Receive, Scope, Send

from cortex_core.config.neuron import NeuronConfig
from cortex_core.errors import CortexError, InternalError
from neuron import logs
from neuron.generation import ModelRegistry
from neuron.routes.exchange import ClientGone, Exchange, Record

__all__ = ["Endpoint", "joined", "new_id"]

_log = logs.get(__name__)

_SILENCE_S = 2.0
_KEEP_ALIVE_S = 1.0


class Endpoint(ABC):
    """The ASGI application behind a route. It answers its errors itself. A stream gives a sign of
    life after `silence_s` of silence, then every `keep_alive_s`."""

    def __init__(
        self,
        registry: ModelRegistry,
        config: NeuronConfig,
        record: Record | None = None,
        *,
        silence_s: float = _SILENCE_S,
        keep_alive_s: float = _KEEP_ALIVE_S,
    ) -> None:
        self.registry = registry
        self.silence_s = silence_s
        self.keep_alive_s = keep_alive_s
        self._node = config.name or None
        self._record = record
        self._reader_timeout_s = config.reader_timeout_s

    @abstractmethod
    async def answer(self, exchange: Exchange, body: bytes) -> None:
        """Decode and answer; waits are to go through `exchange.while_connected`. Raises
        CortexError, to be told to the client, and ClientGone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(
            scope,
            receive,
            send,
            self._node,
            self._record,
            reader_timeout_s=self._reader_timeout_s,
        )
        try:
            await self.answer(exchange, await exchange.read_body())
            exchange.end("ok")
        except ClientGone:
            exchange.end("client_gone")
        except CortexError as error:
            await exchange.fail(error)
        except Exception:
            _log.exception("unforeseen", request=exchange.headers.get("x-request-id"))
            await exchange.fail(InternalError("an internal error; the neuron's log has the cause"))


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


async def joined(parts: Iterable[bytes]) -> msgspec.Raw:
    """JSON in one, made part by part, so that other streams' tokens are not held up."""
    made: list[bytes] = []
    for part in parts:
        made.append(part)
        await asyncio.sleep(0)
    return msgspec.Raw(b"".join(made))

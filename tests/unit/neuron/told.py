"""A registry whose worker says what a test tells it to, through the neuron's real streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from cortex_core.errors import CortexError, Fault, ModelNotFound
from cortex_core.outcome import Usage
from cortex_core.wire import ipc
from neuron.streams import RequestStream, StreamTable
from tests.unit.chat.played import info

__all__ = ["ToldRegistry"]

_GENERATED = Usage(5, 0, 2, 0)
_READ = Usage(5)


class ToldRegistry:
    """`sent` is what the worker was asked, `refusals` what the next requests are refused with."""

    def __init__(self) -> None:
        self.known = info()
        self.defaults: dict[str, Any] = {}
        self.sent: list[ipc.Command] = []
        self.refusals: list[CortexError | None] = []
        self._table = StreamTable(self._send, lambda: None)

    def info(self, model: str) -> ipc.ModelInfo:
        if model != "m":
            raise ModelNotFound(f"model {model!r} is not loaded", param="model")
        return self.known

    def sampling_defaults(self, model: str) -> dict[str, Any]:
        return self.defaults

    def open(self, ask: ipc.Ask) -> RequestStream:
        self.info(ask.model)
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is not None:
            raise refusal
        return self._table.open(ask)

    @property
    def asks(self) -> list[ipc.Ask]:
        return [command for command in self.sent if isinstance(command, ipc.Ask)]

    @property
    def cancelled(self) -> list[int]:
        return [command.request for command in self.sent if isinstance(command, ipc.Cancel)]

    async def asked(self, count: int = 1) -> list[ipc.Ask]:
        """Once so many requests have come."""
        async with asyncio.timeout(10):
            while len(self.asks) < count:
                await asyncio.sleep(0)
        return self.asks

    def start(self, ask: ipc.Ask, prompt: int = 5, cached: int = 0) -> None:
        started = ipc.Started(ask.request, prompt, cached, "cache" if cached else "none")
        self._table.dispatch(ipc.Step("m", started=[started]))

    def say(
        self,
        ask: ipc.Ask,
        text: str,
        channel: ipc.Channel = "content",
        scores: Sequence[ipc.TokenScore] = (),
    ) -> None:
        delta = ipc.Delta(ask.request, text, channel, list(scores))
        self._table.dispatch(ipc.Step("m", deltas=[delta]))

    def finish(
        self, ask: ipc.Ask, usage: Usage = _GENERATED, reason: ipc.FinishReason = "stop"
    ) -> None:
        finished = ipc.Finished(ask.request, reason, usage)
        self._table.dispatch(ipc.Step("m", finished=[finished]))

    def reply(self, ask: ipc.Ask, result: ipc.Result, usage: Usage = _READ) -> None:
        self._table.dispatch(
            ipc.Step(
                "m",
                computed=[ipc.Computed(ask.request, result)],
                finished=[ipc.Finished(ask.request, "stop", usage)],
            )
        )

    def fail(self, ask: ipc.Ask, fault: Fault) -> None:
        self._table.dispatch(ipc.Step("m", failed=[ipc.Failed(ask.request, fault)]))

    def _send(self, command: ipc.Command) -> None:
        msgspec.msgpack.encode(command)  # what cannot be sent must not be asked
        self.sent.append(command)

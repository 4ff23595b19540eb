"""From a completion request to its choices as they come. Knows nothing of HTTP.

Text goes in and comes out raw: no template, and reasoning markers are text like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Literal

import msgspec

from cortex_core.envelopes.openai_completions import CompletionRequest
from cortex_core.errors import UpstreamFailed
from cortex_core.outcome import Usage
from cortex_core.wire import ipc
from neuron.asking import ask
from neuron.generation import ModelRegistry, WorkerStream, resolve_sampling
from neuron.precedence import NOBODY, Precedence

__all__ = ["ChoicePiece", "ChoiceStreams", "CompletionService"]

_ENDS: dict[ipc.FinishReason, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}


class ChoicePiece(msgspec.Struct, frozen=True, gc=False):
    """What one choice goes on with. `finish_reason`: it ends here."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None


class CompletionService:
    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def open(
        self, request: CompletionRequest, precedence: Precedence = NOBODY
    ) -> ChoiceStreams:
        """Send every prompt to the model's worker. Raises ModelNotFound, Unavailable,
        RateLimitExceeded or InvalidRequest. Enter the streams at once: they are in flight from
        here on."""
        registry, prompts = self._registry, request.prompts
        info = registry.info(request.model)
        echoes = [""] * len(prompts)
        if request.echo:
            echoes = [await self._text(request.model, prompt) for prompt in prompts]
        sampling = resolve_sampling(request, info.metadata)
        async with AsyncExitStack() as opened:
            streams: list[WorkerStream] = []
            for prompt in prompts:
                stream = registry.open(
                    ipc.Generate(
                        0,
                        request.model,
                        prompt,
                        sampling,
                        request.token_limit,
                        request.stop_strings,
                        suffix=request.suffix,
                        caller=precedence.caller,
                        priority=precedence.priority,
                        is_raw=True,
                        constraint=request.content_grammar,
                    )
                )
                streams.append(await opened.enter_async_context(stream))
            return ChoiceStreams(streams, echoes, opened.pop_all())

    async def _text(self, model: str, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        reply = await ask(self._registry, ipc.Detokenize(0, model, ipc.pack_ids(prompt)))
        assert isinstance(reply.result, ipc.Text)
        return reply.result.data.decode("utf-8", "replace")


class ChoiceStreams:
    """The choices of one request, of which each may be ahead of the others. `async with`, then
    `read()` until `is_ended`. `started` and `usage` are of those choices that came so far."""

    def __init__(
        self, streams: list[WorkerStream], echoes: list[str], opened: AsyncExitStack
    ) -> None:
        self._streams = dict(enumerate(streams))
        self._echoes = echoes
        self._opened = opened
        self._reads: dict[asyncio.Task[list[ipc.StepEvent]], int] = {}
        self.started: ipc.Started | None = None
        self.usage = Usage()

    @property
    def is_ended(self) -> bool:
        return not self._streams

    async def read(self) -> list[ChoicePiece]:
        """What came, perhaps nothing. Waits as long as the worker takes; raises the CortexError
        that one of the choices ended with, and with it the request."""
        if len(self._streams) == 1 and not self._reads:
            ((index, stream),) = self._streams.items()
            return [self._feed(index, await stream.read())]
        busy = set(self._reads.values())
        for index, stream in self._streams.items():
            if index not in busy:
                self._reads[asyncio.create_task(stream.read())] = index
        done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
        came = sorted((self._reads.pop(task), task) for task in done)
        return [self._feed(index, task.result()) for index, task in came]

    def _feed(self, index: int, events: Iterable[ipc.StepEvent]) -> ChoicePiece:
        text, self._echoes[index] = self._echoes[index], ""
        for event in events:
            if isinstance(event, ipc.Delta):
                text += event.text
            elif isinstance(event, ipc.Started):
                self._start(event)
            elif isinstance(event, ipc.Finished):
                if event.reason == "cancelled":
                    raise UpstreamFailed("the worker cancelled the request")
                del self._streams[index]
                self._count(event.usage)
                return ChoicePiece(index, text, _ENDS[event.reason])
        return ChoicePiece(index, text)

    def _start(self, event: ipc.Started) -> None:
        before = self.started
        if before is not None:
            event = msgspec.structs.replace(
                before, prompt=before.prompt + event.prompt, cached=before.cached + event.cached
            )
        self.started = event

    def _count(self, one: Usage) -> None:
        every = self.usage
        self.usage = Usage(
            every.prompt + one.prompt,
            every.cached + one.cached,
            every.completion + one.completion,
            every.reasoning + one.reasoning,
        )

    async def __aenter__(self) -> ChoiceStreams:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._reads:
            task.cancel()
        if self._reads:
            await asyncio.wait(self._reads)
            for task in self._reads:
                if not task.cancelled():
                    task.exception()  # seen: the request ends with the first one's
        await self._opened.aclose()

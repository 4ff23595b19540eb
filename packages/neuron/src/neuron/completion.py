"""From a completion request to its choices as they come. Knows nothing of HTTP.

Text goes in and comes out raw: no template, and reasoning markers are text like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Literal

import msgspec

from cortex_core.envelopes.openai_completions import CompletionRequest
from cortex_core.errors import UpstreamFailed
from cortex_core.wire import ipc
from neuron.asking import ask
from neuron.choices import Choices, Reader, seeded
from neuron.generation import ModelRegistry
from neuron.per_load import PerLoad
from neuron.precedence import NOBODY, Precedence
from neuron.recommended import recommended, resolve_sampling

__all__ = ["ChoicePiece", "ChoiceStreams", "CompletionService"]

_ENDS: dict[ipc.FinishReason, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}


class ChoicePiece(msgspec.Struct, frozen=True, gc=False):
    """What one choice goes on with. `finish_reason`: it ends here."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    scores: list[ipc.TokenScore] = []


class CompletionService:
    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._recommended = PerLoad(lambda _, info: recommended(info))

    async def open(
        self, request: CompletionRequest, precedence: Precedence = NOBODY
    ) -> ChoiceStreams:
        """Send every prompt to the model's worker, as often as there are to be choices of it.
        Raises ModelNotFound, Unavailable, RateLimitExceeded or InvalidRequest. Enter the streams at
        once: they are in flight from here on."""
        registry, prompts = self._registry, request.prompts
        info = registry.info(request.model)
        echoes = [""] * len(prompts)
        if request.echo:
            echoes = [await self._text(request.model, prompt) for prompt in prompts]
        model = request.model
        sampling = resolve_sampling(
            request, registry.sampling_defaults(model), self._recommended.of(model, info)
        )
        async with AsyncExitStack() as opened:
            choices = await opened.enter_async_context(Choices(request.n))
            for prompt in prompts:
                for index in range(request.n):
                    generate = ipc.Generate(
                        0,
                        request.model,
                        prompt,
                        seeded(sampling, index),
                        request.token_limit,
                        request.stop_strings,
                        suffix=request.suffix,
                        caller=precedence.caller,
                        priority=precedence.priority,
                        is_raw=True,
                        constraint=request.content_grammar,
                        top_logprobs=request.logprobs,
                    )
                    await choices.add(registry.open(generate))
            opened.pop_all()
            return ChoiceStreams(choices, [echo for echo in echoes for _ in range(request.n)])

    async def _text(self, model: str, prompt: str | list[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        reply = await ask(self._registry, ipc.Detokenize(0, model, ipc.pack_ids(prompt)))
        assert isinstance(reply.result, ipc.Text)
        return reply.result.data.decode("utf-8", "replace")


class ChoiceStreams(Reader):
    """The choices of one request. `async with`, then `read()` until `is_ended`. `started` and
    `usage` are of those that came so far."""

    def __init__(self, choices: Choices, echoes: list[str]) -> None:
        super().__init__(choices)
        self._echoes = echoes

    async def read(self) -> list[ChoicePiece]:
        """What came, perhaps nothing. Waits as long as the worker takes; raises the CortexError
        that one of the choices ended with, and with it the request."""
        return [self._feed(index, events) for index, events in await self._choices.read()]

    def _feed(self, index: int, events: Iterable[ipc.StepEvent]) -> ChoicePiece:
        text, self._echoes[index] = self._echoes[index], ""
        scores: list[ipc.TokenScore] = []
        for event in events:
            if isinstance(event, ipc.Delta):
                text += event.text
                scores += event.scores
            elif isinstance(event, ipc.Finished):
                if event.reason == "cancelled":
                    raise UpstreamFailed("the worker cancelled the request")
                return ChoicePiece(index, text, _ENDS[event.reason], scores)
        return ChoicePiece(index, text, None, scores)

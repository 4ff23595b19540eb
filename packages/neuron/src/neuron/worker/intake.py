"""From a Generate command to the stream that answers it: prompt, limits, reasoning, sampler.

What may take long is done on threads of its own, so that nobody else's tokens wait for it: on one
constraints are compiled and DRY looks through the vocabulary, on another long prompts are cut up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cortex_core.errors import (
    ContextLengthExceeded,
    CortexError,
    Fault,
    InternalError,
    InvalidRequest,
    Overrun,
)
from cortex_core.wire.ipc import Calls, Constraint, Generate
from neuron.worker.channels import FINAL, ChannelState
from neuron.worker.grammar import ContentGuide, Grammars, Guide
from neuron.worker.llama import Int32s
from neuron.worker.load import LoadedModel
from neuron.worker.prompt import prompt_tokens, turn_boundaries
from neuron.worker.reasoning import ReasoningState
from neuron.worker.sampling import Sampler, sampler_for
from neuron.worker.stream import Stream

__all__ = ["Intake", "Prepared", "takes_long"]


_LONG_PROMPT = 32 * 1024
"""Characters, or tokens: a hundredth of a second's work."""


def takes_long(command: Generate) -> bool:
    return _is_compiled(command) or len(command.prompt) + len(command.suffix or "") > _LONG_PROMPT


def _is_compiled(command: Generate) -> bool:
    return command.constraint is not None or command.sampling.dry_multiplier > 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A command that took long: its stream, or why there is none."""

    request: int
    stream: Stream | None
    fault: Fault | None


class Intake:
    """`can_trim`: see KV."""

    def __init__(self, loaded: LoadedModel, *, can_trim: bool) -> None:
        self._loaded = loaded
        self._vocabulary = loaded.model.vocabulary
        self._can_trim = can_trim
        self._grammars = Grammars(loaded.model, loaded.marks.ids if loaded.marks else ())
        self._threads: dict[bool, ThreadPoolExecutor] = {}
        self._began = 0.0

    @property
    def began(self) -> float:
        """When the constraint that is being compiled was begun; 0: none is. On the monotonic
        clock."""
        return self._began

    def prepare(
        self,
        command: Generate,
        then: Callable[[Prepared], None],
        is_wanted: Callable[[int], bool],
    ) -> None:
        """Make the stream on another thread, which calls `then`; unless the request is not wanted
        any more when its turn comes."""

        def work() -> None:
            if not is_wanted(command.request):
                return
            stream = fault = None
            try:
                stream = self.stream(command)
            except CortexError as error:
                fault = error.fault
            except Exception as error:
                fault = InternalError(f"cannot take the request: {error!r}").fault
            then(Prepared(command.request, stream, fault))

        kind = _is_compiled(command)
        if kind not in self._threads:
            self._threads[kind] = ThreadPoolExecutor(1, "intake")
        self._threads[kind].submit(work)

    def close(self) -> None:
        """Wait for what is being prepared: it reads the model's vocabulary."""
        for thread in self._threads.values():
            thread.shutdown(cancel_futures=True)

    def stream(self, command: Generate) -> Stream:
        """Raises ContextLengthExceeded or InvalidRequest."""
        prompt = prompt_tokens(self._vocabulary, command)
        limit = self._limit(command, len(prompt))
        ends = self._vocabulary.end_ids
        reasoning = None
        if (marks := self._loaded.marks) and not command.is_raw:
            reasoning = marks.follow(
                prompt.tolist(),
                ends,
                limit=command.max_thinking_tokens,
                said=_headers(command.constraint),
            )
        return Stream(
            command,
            prompt,
            limit=limit,
            ends=ends,
            pieces=self._loaded.pieces,
            reasoning=reasoning,
            sampler=self._sampler(command, self._guide(command, prompt, reasoning)),
            deadline=time.monotonic() + self._loaded.params.max_wait_s,
            stops=() if self._can_trim else turn_boundaries(prompt, ends),
        )

    def _limit(self, command: Generate, size: int) -> int:
        """How many tokens the answer may have."""
        context = self._loaded.info.context
        if size == 0:
            raise InvalidRequest("the prompt has no tokens")
        if size >= context:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {context} tokens, but the prompt alone "
                f"has {size} tokens; one at least must be left for the answer",
                overrun=Overrun(size, context - 1),
            )
        if command.max_tokens is None:
            return context - size
        if command.max_tokens < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, got {command.max_tokens}")
        return min(context - size, command.max_tokens)

    def _sampler(self, command: Generate, guide: Guide | None) -> Sampler | None:
        model, context = self._loaded.model, self._loaded.info.context
        try:
            return sampler_for(
                command.sampling,
                model,
                context=context,
                guide=guide,
                top_logprobs=command.top_logprobs,
            )
        except CortexError:
            if guide is not None:
                guide.free()
            raise

    def _guide(
        self, command: Generate, prompt: Int32s, reasoning: ReasoningState | None
    ) -> Guide | None:
        if command.constraint is None:
            return None
        self._began = time.monotonic()
        try:
            return self._compiled(command.constraint, prompt, reasoning)
        finally:
            self._began = 0.0

    def _compiled(
        self, constraint: Constraint, prompt: Int32s, reasoning: ReasoningState | None
    ) -> Guide:
        marks, ends = self._loaded.marks, self._vocabulary.end_ids
        if isinstance(constraint, Calls) and constraint.is_addressed:
            return self._addressed(constraint, reasoning)
        guide = self._grammars.compile(constraint)
        if reasoning is None or marks is None:
            return guide
        opening = marks.opening(prompt.tolist(), ends)
        return ContentGuide(guide, reasoning, barred=marks.strays | ends, opening=opening)

    def _addressed(self, calls: Calls, reasoning: ReasoningState | None) -> Guide:
        marks, ends = self._loaded.marks, self._vocabulary.end_ids
        if marks is None or not isinstance(reasoning, ChannelState):
            raise _not_addressed("the model has no tokens for it")
        if calls.is_required and reasoning.is_in_content:
            raise _not_addressed("the prompt leads to text")
        guide = self._grammars.addressed(calls, reasoning, barred=marks.ids - ends)
        return ContentGuide(guide, reasoning, barred=marks.strays | ends, opening=None)


def _not_addressed(cause: str) -> InvalidRequest:
    message = f"tools: no message can be addressed to a function: {cause}"
    return InvalidRequest(message, param="tools")


def _headers(constraint: Constraint | None) -> list[str] | None:
    """Of the messages that may be said."""
    if constraint is None:
        return None
    if not isinstance(constraint, Calls) or not constraint.is_addressed:
        return []
    return [form.before for form in constraint.forms] + [FINAL] * (not constraint.is_required)

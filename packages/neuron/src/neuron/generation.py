"""From a chat request to a worker's stream: template, sampling, and the machines that read the
answer. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import ChatRequest
from cortex_core.errors import TemplateRenderFailed
from cortex_core.wire import ipc
from cortex_core.wire.sampling import Constraint
from neuron.chat.answer import Answer
from neuron.chat.call_grammar import constraint_for, is_strict_ignored
from neuron.chat.pieces import Piece
from neuron.chat.reasoning import KeptReasoning, SplitReasoning
from neuron.chat.template import ChatTemplate, Prompt, find_texts
from neuron.chat.tool_calls import reader_for
from neuron.choices import Choices, Reader, WorkerStream, seeded
from neuron.models.kind import check_kind
from neuron.per_load import PerLoad
from neuron.precedence import NOBODY, Precedence
from neuron.recommended import recommended, resolve_sampling

__all__ = ["ChatService", "ChatStream", "ModelRegistry", "Rendered"]

# A render this short costs less than handing it to a thread would; a template that was slow once,
# a long conversation, or many tools go to a thread, so that other streams' tokens are not held up.
_INLINE_RENDER_S = 0.001
_INLINE_CHARACTERS = 64 * 1024

# The variables by which a template is told of a parameter.
_TELLS = {
    "reasoning_effort": {"reasoning_effort", "enable_thinking"},
    "enable_thinking": {"enable_thinking"},
    "add_generation_prompt": {"add_generation_prompt"},
}


class ModelRegistry(Protocol):
    """What is used of the neuron's models. `info` and `open` raise ModelNotFound, or why it cannot
    serve."""

    def info(self, model: str) -> ipc.ModelInfo: ...

    def sampling_defaults(self, model: str) -> Mapping[str, Any]:
        """What its load asked for, by the names of ipc.Sampling."""
        ...

    def open(self, ask: ipc.Ask) -> WorkerStream:
        """Also raises RateLimitExceeded. `ask.request` is 0: the stream table chooses it."""
        ...


class ChatStream(Reader):
    """The answers to one request as they come, of which each may be ahead of the others. `async
    with`, then `read()` until `is_ended`."""

    def __init__(
        self, choices: Choices, answers: Sequence[Answer], ignored: Sequence[str] = ()
    ) -> None:
        """`ignored`: parameters that this model's template leaves without effect."""
        self.answers = answers
        self.ignored = ignored
        super().__init__(choices)

    async def read(self) -> list[tuple[int, list[Piece]]]:
        """The next pieces, perhaps none, each with its answer's index. Waits as long as the worker
        takes; raises the CortexError that one of the answers ended with."""
        came = await self._choices.read()
        return [(index, self.answers[index].feed(events)) for index, events in came]


class Rendered(msgspec.Struct, frozen=True):
    """What a request comes to: its prompt, and what is sent to the worker for its first choice.
    `ignored`: parameters that this model leaves without effect."""

    prompt: Prompt
    generate: ipc.Generate
    info: ipc.ModelInfo
    ignored: list[str]


class ChatService:
    """Opens chat streams on the models of `registry`; keeps each model's compiled template."""

    def __init__(self, registry: ModelRegistry, config: NeuronConfig) -> None:
        self._registry = registry
        self._config = config
        self._templates = PerLoad(self._template)
        self._recommended = PerLoad(lambda _, info: recommended(info))

    async def open(
        self,
        request: ChatRequest,
        *,
        include_thinking: bool = False,
        precedence: Precedence = NOBODY,
    ) -> ChatStream:
        """Render the prompt and send it to the model's worker. Raises RateLimitExceeded, and as
        `render`. Enter the stream at once: the request is in flight from here on."""
        rendered = await self.render(request, precedence)
        generate = rendered.generate
        answers = [_answer(request, rendered, include_thinking) for _ in range(request.n)]
        async with AsyncExitStack() as opened:
            choices = await opened.enter_async_context(Choices(request.n))
            for index in range(request.n):
                sampling = seeded(generate.sampling, index)
                ask = generate if not index else replace(generate, sampling=sampling)
                await choices.add(self._registry.open(ask))
            opened.pop_all()
        return ChatStream(choices, answers, rendered.ignored)

    async def render(self, request: ChatRequest, precedence: Precedence = NOBODY) -> Rendered:
        """All that is done before anything is sent. Raises ModelNotFound, Unavailable,
        TemplateRenderFailed, or InvalidRequest, also for a model of another kind."""
        info = self._registry.info(request.model)
        prompt = await self.prompt(request)
        constraint = constraint_for(request, prompt.format_text)
        generate = self._generate(request, prompt.text, constraint, info, precedence)
        check_kind(generate, info.kind)
        return Rendered(prompt, generate, info, _without_effect(request, prompt, info))

    async def prompt(self, request: ChatRequest) -> Prompt:
        """Of a model of any kind. Raises ModelNotFound, Unavailable, TemplateRenderFailed or
        InvalidRequest."""
        template = self._templates.of(request.model, self._registry.info(request.model))
        arguments = (request.messages, request.offered_tools or None, request.template_kwargs)
        render = partial(template.render, continue_final_message=request.continue_final_message)
        is_quick = template.last_s < _INLINE_RENDER_S
        if is_quick and _is_short([request.messages, request.offered_tools]):
            return render(*arguments)
        return await asyncio.to_thread(render, *arguments)

    def _template(self, model: str, info: ipc.ModelInfo) -> ChatTemplate:
        path = Path(info.path) if info.path else None
        use = self._config.use_chat_template
        override = self._override(model) if use else None
        texts = find_texts(path, info.metadata, override=override, use_chat_template=use)
        return ChatTemplate(texts, bos=info.bos, eos=info.eos)

    def _override(self, model: str) -> str | None:
        """The operator's own template. Another in its place would be a surprise, so one that
        cannot be read raises TemplateRenderFailed."""
        file = self._config.chat_templates.get(model)
        try:
            return None if file is None else Path(file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateRenderFailed(
                f"the template that is configured for {model!r} cannot be read: {error}"
            ) from None

    def _generate(
        self,
        request: ChatRequest,
        prompt: str,
        constraint: Constraint | None,
        info: ipc.ModelInfo,
        precedence: Precedence,
    ) -> ipc.Generate:
        model = request.model
        return ipc.Generate(
            0,
            model,
            prompt,
            resolve_sampling(
                request,
                self._registry.sampling_defaults(model),
                self._recommended.of(model, info),
            ),
            request.token_limit,
            request.stop_strings,
            caller=precedence.caller,
            priority=precedence.priority,
            constraint=constraint,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            max_thinking_tokens=request.max_thinking_tokens,
        )


def _answer(request: ChatRequest, rendered: Rendered, include_thinking: bool) -> Answer:
    prompt = rendered.prompt
    calls = reader_for(prompt.format_text, request.offered_tools)
    marker, thought = _opened_block(prompt.text, rendered.info)
    continues = request.continue_final_message
    if include_thinking:
        # A client that began the block itself, or a user who wrote of a marker, has seen it.
        is_unseen = not continues and not thought.strip()
        return Answer(KeptReasoning(marker + thought if is_unseen else ""), calls)
    reasoning = SplitReasoning()
    if continues and marker:
        # As if the model had written it: the first new token is at no seam, where white space is
        # the template's.
        reasoning.feed("marker", marker)
        reasoning.feed("reasoning", thought.rstrip())
    return Answer(reasoning, calls)


def _without_effect(request: ChatRequest, prompt: Prompt, info: ipc.ModelInfo) -> list[str]:
    """Parameters that this model or its template has no use for."""
    ignored = ["tools.function.strict"] if is_strict_ignored(request, prompt.format_text) else []
    told = request.template_kwargs.keys()
    for name, variables in _TELLS.items():
        if getattr(request, name) is not None and variables & told <= prompt.unread:
            ignored.append(name)
    if request.max_thinking_tokens is not None and info.reasoning is None:
        ignored.append("max_thinking_tokens")
    own = (name for name in request.chat_template_kwargs or () if name in prompt.unread)
    return list(dict.fromkeys([*ignored, *map(_in_header, own)]))


def _in_header(kwarg: str) -> str:
    """A client's own word may be any text."""
    is_word = kwarg.isascii() and kwarg.isidentifier()
    return f"chat_template_kwargs.{kwarg}" if is_word else "chat_template_kwargs"


def _is_short(told: list[Any]) -> bool:
    left = _INLINE_CHARACTERS
    rest: list[Any] = [told]  # a stack of our own: clients may nest as deep as JSON allows
    while rest and left > 0:
        value = rest.pop()
        if isinstance(value, str):
            left -= len(value)
        elif isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return left > 0


def _opened_block(prompt: str, info: ipc.ModelInfo) -> tuple[str, str]:
    """The opening marker, and what was thought since, where the prompt ends inside reasoning; ("",
    "") where it does not."""
    if info.reasoning is None:
        return "", ""
    opening, closing = info.reasoning
    _, marker, thought = prompt.rpartition(opening)
    is_over = closing in thought or (info.eos and info.eos in thought)
    return ("", "") if is_over or not marker else (marker, thought)

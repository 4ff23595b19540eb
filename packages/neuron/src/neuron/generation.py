"""From a chat request to a worker's stream: template, sampling, and the machines that read the
answer. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import ChatRequest
from cortex_core.envelopes.sampling import SamplingParameters, is_in_range
from cortex_core.wire import ipc
from neuron.chat.answer import Answer
from neuron.chat.call_grammar import constraint_for, is_strict_ignored
from neuron.chat.pieces import Piece
from neuron.chat.reasoning import KeptReasoning, SplitReasoning
from neuron.chat.template import ChatTemplate, Prompt, find_texts
from neuron.chat.tool_calls import parser_for
from neuron.choices import Choices, Reader, WorkerStream, seeded
from neuron.precedence import NOBODY, Precedence

__all__ = ["ChatService", "ChatStream", "ModelRegistry", "resolve_sampling"]

# A render this short costs less than handing it to a thread would; a template that was slow once,
# or a long conversation, goes to a thread, so that other streams' tokens are not held up.
_INLINE_RENDER_S = 0.001
_INLINE_CHARACTERS = 64 * 1024


class ModelRegistry(Protocol):
    """What is used of the neuron's models. Both raise ModelNotFound, or why it cannot serve."""

    def info(self, model: str) -> ipc.ModelInfo: ...

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


class ChatService:
    """Opens chat streams on the models of `registry`; keeps each model's compiled template."""

    def __init__(self, registry: ModelRegistry, config: NeuronConfig) -> None:
        self._registry = registry
        self._config = config
        self._templates: dict[str, tuple[ipc.ModelInfo, ChatTemplate]] = {}

    async def open(
        self,
        request: ChatRequest,
        *,
        include_thinking: bool = False,
        precedence: Precedence = NOBODY,
    ) -> ChatStream:
        """Render the prompt and send it to the model's worker. Raises ModelNotFound, Unavailable,
        RateLimitExceeded, TemplateRenderFailed or InvalidRequest. Enter the stream at once: the
        request is in flight from here on."""
        info = self._registry.info(request.model)
        prompt = await self._render(request, self._template(request.model, info))
        constraint = constraint_for(request, prompt.format_text)
        sampling = resolve_sampling(request, info.metadata)
        opened_by = _opened_by(prompt.text, info.reasoning) if include_thinking else None
        answers = [_answer(request, prompt, opened_by) for _ in range(request.n)]
        async with AsyncExitStack() as opened:
            choices = await opened.enter_async_context(Choices(request.n))
            for index in range(request.n):
                generate = ipc.Generate(
                    0,
                    request.model,
                    prompt.text,
                    seeded(sampling, index),
                    request.token_limit,
                    request.stop_strings,
                    caller=precedence.caller,
                    priority=precedence.priority,
                    constraint=constraint,
                    top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
                )
                await choices.add(self._registry.open(generate))
            opened.pop_all()
        ignored = (
            ["tools.function.strict"] if is_strict_ignored(request, prompt.format_text) else []
        )
        return ChatStream(choices, answers, ignored)

    async def prompt(self, request: ChatRequest) -> Prompt:
        """The prompt that `open` would send. Raises ModelNotFound, Unavailable or
        TemplateRenderFailed."""
        info = self._registry.info(request.model)
        return await self._render(request, self._template(request.model, info))

    def _template(self, model: str, info: ipc.ModelInfo) -> ChatTemplate:
        known = self._templates.get(model)
        if known is not None and (known[0] is info or known[0] == info):
            return known[1]
        path = Path(info.path) if info.path else None
        use = self._config.use_chat_template
        texts = find_texts(path, info.metadata, use_chat_template=use)
        template = ChatTemplate(texts, bos=info.bos, eos=info.eos)
        self._templates[model] = (info, template)
        return template

    async def _render(self, request: ChatRequest, template: ChatTemplate) -> Prompt:
        arguments = (request.messages, request.offered_tools or None, _template_kwargs(request))
        is_quick = template.last_s < _INLINE_RENDER_S
        if is_quick and _is_short(request.messages):
            return template.render(*arguments)
        return await asyncio.to_thread(template.render, *arguments)


def _answer(request: ChatRequest, prompt: Prompt, opened_by: str | None) -> Answer:
    """`opened_by`: thinking stays in the content, and the prompt opened it with this."""
    tools = request.offered_tools
    calls = parser_for(prompt.format_text, tools) if tools else None
    reasoning = SplitReasoning() if opened_by is None else KeptReasoning(opened_by)
    return Answer(reasoning, calls)


def _template_kwargs(request: ChatRequest) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    if request.reasoning_effort is not None:
        kwargs["enable_thinking"] = request.reasoning_effort != "none"
        if request.reasoning_effort != "none":
            kwargs["reasoning_effort"] = request.reasoning_effort
    return kwargs | (request.chat_template_kwargs or {})


def _is_short(messages: list[dict[str, Any]]) -> bool:
    left = _INLINE_CHARACTERS
    rest: list[Any] = [messages]  # a stack of our own: clients may nest as deep as JSON allows
    while rest and left > 0:
        value = rest.pop()
        if isinstance(value, str):
            left -= len(value)
        elif isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return left > 0


def _opened_by(prompt: str, markers: tuple[str, str] | None) -> str:
    """The opening marker, with what follows it, where the prompt itself ends in one."""
    if markers is None:
        return ""
    at = prompt.rfind(markers[0])
    tail = prompt[at:] if at >= 0 else ""
    return tail if tail.strip() == markers[0] else ""


# Names the GGUF format gives to the values a model's makers recommend.
_RECOMMENDED = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
    "repeat_last_n": "general.sampling.penalty_last_n",
    "xtc_probability": "general.sampling.xtc_probability",
    "xtc_threshold": "general.sampling.xtc_threshold",
    "mirostat": "general.sampling.mirostat",
    "mirostat_tau": "general.sampling.mirostat_tau",
    "mirostat_eta": "general.sampling.mirostat_eta",
}
_WHOLE = ("top_k", "repeat_last_n", "mirostat")


def resolve_sampling(request: SamplingParameters, metadata: Mapping[str, str]) -> ipc.Sampling:
    """Each value from the request, else from the model's metadata, else the fixed default."""
    values: dict[str, Any] = {}
    for name in ipc.Sampling.__struct_fields__:
        value = request.token_biases if name == "logit_bias" else getattr(request, name)
        if value is None and name in _RECOMMENDED:
            value = _recommended(name, metadata.get(_RECOMMENDED[name]))
        if value is not None:
            values[name] = tuple(value) if isinstance(value, list) else value
    return ipc.Sampling(**values)


def _recommended(name: str, text: str | None) -> float | int | None:
    """Metadata is untrusted: what a request may not ask for is no recommendation."""
    try:
        value = float(text or "")
        value = int(value) if name in _WHOLE else value
    except (ValueError, OverflowError):
        return None
    return value if value >= 0 and is_in_range(name, value) else None

"""Which sampling, prompt and machines a request gets."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import ChatRequest
from cortex_core.errors import ModelNotFound, TemplateRenderFailed
from cortex_core.wire import ipc
from neuron import generation
from neuron.chat.template import ChatTemplate
from neuron.generation import ChatService
from tests.unit.chat.played import PlayedRegistry, ask, info

TOOLS = [{"type": "function", "function": {"name": "add"}}]


def _request(**more: Any) -> ChatRequest:
    return msgspec.convert(ask(**more), ChatRequest)


async def _prompt(registry: PlayedRegistry, request: ChatRequest, **config: Any) -> str:
    async with await ChatService(registry, NeuronConfig(**config)).open(request):
        prompt = registry.generate.prompt
        assert isinstance(prompt, str)
        return prompt


# prompt


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({}, ""),
        ({"reasoning_effort": "none"}, "|thinking=False"),
        ({"reasoning_effort": "low"}, "|thinking=True"),
        ({"enable_thinking": False}, "|thinking=False"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "|thinking=False"),
        (
            {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
            "|thinking=False",
        ),
    ],
)
async def test_thinking_is_told_to_the_template(wishes: dict[str, Any], told: str):
    assert await _prompt(PlayedRegistry(), _request(**wishes)) == "<user>hi" + told


async def test_tools_reach_the_prompt_unless_they_are_not_to_be_called():
    assert "<tools>" in await _prompt(PlayedRegistry(), _request(tools=TOOLS))
    choice = _request(tools=TOOLS, tool_choice="none")
    assert "<tools>" not in await _prompt(PlayedRegistry(), choice)
    assert "<tools>" not in await _prompt(PlayedRegistry(), _request(tools=[]))


async def test_the_switch_forces_chatml():
    prompt = await _prompt(PlayedRegistry(), _request(), use_chat_template=False)
    assert prompt.startswith("<|im_start|>user\nhi")


async def test_an_operators_own_template_goes_before_the_models(tmp_path: Path):
    file = tmp_path / "own.jinja"
    file.write_text("own: {{ messages[0].content }}", "utf-8")
    own = {"m": str(file), "other": "/no/such/file"}
    assert await _prompt(PlayedRegistry(), _request(), chat_templates=own) == "own: hi"


async def test_an_operators_own_template_that_is_gone_is_missed():
    with pytest.raises(TemplateRenderFailed, match="is configured for 'm' cannot be read"):
        await _prompt(PlayedRegistry(), _request(), chat_templates={"m": "/no/such/file"})


async def test_limits_and_stops_go_along():
    registry = PlayedRegistry()
    await _prompt(registry, _request(max_tokens=5, max_completion_tokens=7, stop=["a", "", "b"]))
    assert (registry.generate.max_tokens, registry.generate.stop) == (7, ("a", "b"))


async def test_a_model_that_was_loaded_anew_gets_its_new_template():
    registry = PlayedRegistry(known=info("old"))
    service = ChatService(registry, NeuronConfig())
    async with await service.open(_request()):
        pass
    registry.known = info("new")
    async with await service.open(_request()):
        pass
    prompts = [sent.prompt for sent in registry.sent if isinstance(sent, ipc.Generate)]
    assert prompts == ["old", "new"]


async def test_a_long_conversation_renders_the_same_in_its_thread():
    content = "x" * 100_000
    assert await _prompt(PlayedRegistry(), _request(content=content)) == "<user>" + content


MANY_TOOLS = [{"type": "function", "function": {"name": "f" * 64}}] * 2000


@pytest.mark.parametrize(
    ("more", "is_beside"),
    [({}, False), ({"content": "x" * 100_000}, True), ({"tools": MANY_TOOLS}, True)],
)
async def test_what_is_long_is_rendered_beside_the_event_loop(
    more: dict[str, Any], is_beside: bool, monkeypatch: pytest.MonkeyPatch
):
    threads, render = list[threading.Thread](), ChatTemplate.render

    def note(self: ChatTemplate, *args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread())
        return render(self, *args, **kwargs)

    monkeypatch.setattr(ChatTemplate, "render", note)
    monkeypatch.setattr(generation, "_INLINE_RENDER_S", math.inf)
    service = ChatService(PlayedRegistry(), NeuronConfig())
    await service.render(_request())  # the first of a template is always beside
    threads.clear()
    await service.render(_request(**more))
    assert [thread is not threading.main_thread() for thread in threads] == [is_beside]


async def test_an_unknown_model_and_a_failing_template_are_typed():
    with pytest.raises(ModelNotFound):
        await _prompt(PlayedRegistry(), msgspec.structs.replace(_request(), model="x"))
    registry = PlayedRegistry(known=info("{{ tools }}{{ raise_exception('no') }}"))
    with pytest.raises(TemplateRenderFailed):
        await _prompt(registry, _request(tools=TOOLS))
    assert not registry.sent

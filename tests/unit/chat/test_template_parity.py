"""Prompts are, byte for byte, what `transformers` makes of the same template and conversation.

The templates are written in the style of model families, each with what is peculiar to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from cortex_core.errors import InvalidRequest, TemplateRenderFailed
from neuron.chat.template import ChatTemplate, TemplateTexts
from tests.unit.chat.called import read
from tests.unit.chat.conversations import TOOLS, conversations, fixed

TEMPLATES = {
    path.stem: path.read_text("utf-8")
    for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}
WITHOUT_TOOLS = {"gemma"}
WITH_ARGUMENTS_AS_TEXT = {"deepseek"}
REFERENCE = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")),
    bos_token="<s>",
    eos_token="</s>",
)
# What a reference render may end in: the template's own refusals, and what Python says of them.
REFUSALS = (jinja2.TemplateError, TypeError, ValueError)

Messages = list[dict[str, Any]]


def _ours(name: str, messages: Messages, tools: list[Any] | None = None, **more: Any) -> str:
    template = ChatTemplate(TemplateTexts(TEMPLATES[name]), bos="<s>", eos="</s>")
    return template.render(messages, tools, **more).text


def _theirs(
    name: str,
    messages: Messages,
    tools: list[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    continue_final_message: bool = False,
) -> str:
    if name not in WITH_ARGUMENTS_AS_TEXT:
        messages = [_with_objects(message) for message in messages]
    context = {"add_generation_prompt": not continue_final_message, **(kwargs or {})}
    prompt = REFERENCE.apply_chat_template(
        messages,
        tools=tools,
        chat_template=TEMPLATES[name],
        tokenize=False,
        continue_final_message=continue_final_message,
        **context,
    )
    assert isinstance(prompt, str)
    return prompt


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """`transformers` wants arguments as objects, where OpenAI's API has text."""
    calls = [
        call
        | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
        for call in message.get("tool_calls") or []
    ]
    return message | {"tool_calls": calls} if calls else message


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize(
    "kwargs", [{}, {"enable_thinking": False}, {"add_generation_prompt": False}]
)
def test_a_usual_conversation(name: str, system: bool, kwargs: dict[str, Any]):
    has_tools = name not in WITHOUT_TOOLS
    messages = fixed(system=system, calls=has_tools)
    tools = TOOLS if has_tools else None
    assert _ours(name, messages, tools, kwargs=kwargs) == _theirs(name, messages, tools, kwargs)


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_begun_by_the_client_is_continued(name: str):
    messages = fixed(calls=False)
    messages.append({"role": "assistant", "content": "Well, the sky "})
    ours = _ours(name, messages, continue_final_message=True)
    assert ours == _theirs(name, messages, continue_final_message=True)
    assert ours.endswith(("Well, the sky ", "Well, the sky"))


@settings(max_examples=200)
@given(
    messages=conversations(),
    has_tools=st.booleans(),
    kwargs=st.sampled_from(
        [{}, {}, {"enable_thinking": False}, {"reasoning_effort": "high"}, {"controls": {"a": 1}}]
    ),
    is_continued=st.sampled_from([False, False, True]),
)
def test_any_conversation(
    messages: Messages, has_tools: bool, kwargs: dict[str, Any], is_continued: bool
):
    is_plain = not has_tools and all(message["role"] != "tool" for message in messages)
    for name in TEMPLATES:
        if name in WITHOUT_TOOLS and not is_plain:
            continue
        tools = TOOLS if has_tools else None
        try:
            theirs = _theirs(name, messages, tools, kwargs, is_continued)
        except REFUSALS:
            continue  # what is done then is our own, and tested where it belongs
        ours = _ours(name, messages, tools, kwargs=kwargs, continue_final_message=is_continued)
        assert ours == theirs, name


@settings(max_examples=50)
@given(messages=conversations(), has_tools=st.booleans())
def test_what_a_template_refuses_ends_in_another_prompt_or_says_why(
    messages: Messages, has_tools: bool
):
    for name in TEMPLATES:
        try:
            shown = _ours(name, messages, TOOLS if has_tools else None)
        except TemplateRenderFailed as error:
            shown = has_tools and error.message
        assert shown, name


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - WITHOUT_TOOLS - {"harmony"}))
def test_a_call_as_the_template_writes_it_is_read_from_an_answer(name: str):
    question, called = fixed()[:4], fixed()[:5]
    asked = _ours(name, question, TOOLS)
    closed = {"add_generation_prompt": False}
    answered = _ours(name, called, TOOLS, kwargs=closed)
    if not answered.startswith(asked):  # the template thinks aloud only where it generates
        asked = _ours(name, question, TOOLS, kwargs=closed)
    same = (a == b for a, b in zip(asked, answered, strict=False))
    begin = next((at for at, is_same in enumerate(same) if not is_same), len(asked))
    found = read(TEMPLATES[name], answered[begin:], tools=TOOLS)
    ((called_name, arguments),) = [part for part in found if isinstance(part, tuple)]
    assert called_name == "get_weather"
    assert json.loads(arguments) == {"city": "Köln", "days": 2}


def test_there_must_be_something_to_continue():
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}]
    with pytest.raises(InvalidRequest, match="no text to continue"):
        _ours("qwen3", messages, continue_final_message=True)
    with pytest.raises(InvalidRequest, match="excludes add_generation_prompt"):
        _ours(
            "qwen3",
            fixed(),
            kwargs={"add_generation_prompt": True},
            continue_final_message=True,
        )

"""Which template a model has, what it is given, and what happens when it fails."""

from __future__ import annotations

import json
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from cortex_core.errors import InvalidRequest, TemplateRenderFailed
from neuron.chat.template import CHATML, ChatTemplate, TemplateTexts, find_texts

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
]
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "1+2?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "add", "arguments": '{"a": 1}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "3"},
]
USER = [{"role": "user", "content": "hi"}]
METADATA = {"tokenizer.chat_template": "gguf", "tokenizer.chat_template.tool_use": "gguf tools"}


def _made(style: str) -> str:
    return (files("tools.make_gguf") / f"{style}.jinja").read_text("utf-8")


def _render(text: str, messages: list[dict[str, Any]], **more: Any) -> str:
    return ChatTemplate(TemplateTexts(text), bos="<s>", eos="</s>").render(messages, **more).text


# which


def test_precedence(tmp_path: Path):
    path = tmp_path / "model.gguf"
    assert find_texts(path, {}).default == CHATML
    assert find_texts(path, METADATA) == TemplateTexts("gguf", "gguf tools", "GGUF metadata")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "config"}))
    assert find_texts(path, METADATA).default == "config"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert find_texts(path, METADATA).default == "jinja"
    assert find_texts(path, METADATA, override="mine").default == "mine"
    assert find_texts(path, METADATA, override="mine", use_chat_template=False).default == CHATML


def test_a_named_list_gives_both(tmp_path: Path):
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    found = find_texts(tmp_path / "m.gguf", {})
    assert found == TemplateTexts("d", "t", "tokenizer_config.json")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"chat_template": 5}', '{"chat_template": [{"name": "x"}]}', "[" * 99999],
)
def test_a_useless_config_is_passed_over(tmp_path: Path, content: str):
    (tmp_path / "tokenizer_config.json").write_text(content)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert find_texts(tmp_path / "m.gguf", METADATA).default == "gguf"


def test_named_templates_lie_in_a_folder_beside_the_default(tmp_path: Path):
    (tmp_path / "chat_template.jinja").write_text("d")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("t")
    found = find_texts(tmp_path / "m.gguf", METADATA)
    assert found == TemplateTexts("d", "t", "chat_template.jinja")


def test_the_tool_template_is_for_requests_with_tools():
    template = ChatTemplate(TemplateTexts("plain", "{{ tools[0].function.name }}"))
    assert template.render(USER).text == "plain"
    assert template.render(USER, TOOLS).text == "add"


# what it is given


def test_context_names():
    text = (
        "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ tools }}{{ documents }}{{ x }}"
    )
    assert _render(text, USER, kwargs={"x": 1}) == "<s></s>TrueNoneNone1"


def test_kwargs_win_over_defaults_but_cannot_replace_the_conversation():
    text = "{{ tools }}{{ add_generation_prompt }}"
    assert _render(text, USER, kwargs={"add_generation_prompt": False}) == "NoneFalse"
    with pytest.raises(InvalidRequest, match=r"chat_template_kwargs\.messages"):
        _render(text, USER, kwargs={"messages": []})


def test_arguments_are_an_object():
    text = "{{ tools }}{{ messages[1].tool_calls[0].function.arguments.a + 1 }}"
    assert _render(text, CALLED) == "None2"
    assert CALLED[1]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


def test_arguments_that_are_no_object_stay_text():
    call = {"function": {"name": "f", "arguments": "{broken"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    text = "{{ tools }}{{ messages[0].tool_calls[0].function.arguments }}"
    assert _render(text, [message]) == "None{broken"


PARTS = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "extra": 1}],
    }
]


def test_parts_are_joined_for_a_template_that_prints_content():
    assert _render("{{ messages[0].content }}", PARTS) == "a\nb"


@pytest.mark.parametrize(
    "loop",
    [
        "for p in m.content",
        "for p in m['content'] | selectattr('text')",
        "for p in m.content if p.type == 'text'",
    ],
)
def test_parts_stay_for_a_template_that_iterates_them(loop: str):
    text = (
        "{{ tools }}{% for m in messages %}{% " + loop + " %}[{{ p.text }}]{% endfor %}{% endfor %}"
    )
    assert _render(text, PARTS) == "None[a][b]"


@pytest.mark.parametrize(
    ("ask", "wrapped"),
    [("", True), ("{% if m.content is string %}{% endif %}", False)],
)
def test_text_is_a_part_for_a_template_that_knows_nothing_else(ask: str, wrapped: bool):
    loop = "{% for m in messages %}" + ask + "{% for p in m.content %}[{{ p.text }}]{% endfor %}"
    assert _render("{{ tools }}" + loop + "{% endfor %}", USER) == (
        "None[hi]" if wrapped else "None[][]"
    )


def test_a_null_is_left_out_unless_the_template_asks_for_it():
    messages = [{"role": "assistant", "content": None, "name": None}]
    names = "{{ messages[0].keys() | join(',') }}"
    assert _render("{{ tools }}" + names, messages) == "Nonerole"
    asks = "{% if messages[0].content is not none %}{% endif %}"
    assert _render("{{ tools }}" + asks + names, messages) == "Nonerole,content"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_known_by_the_names_that_templates_read(key: str):
    messages = [{"role": "assistant", "content": "x", key: "hm"}]
    text = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    assert _render(text, messages) == "hm hm"


def test_developer_is_system_unless_the_template_knows_it():
    messages = [{"role": "developer", "content": "x"}]
    assert _render("{{ messages[0].role }}", messages) == "system"
    assert _render("{# developer #}{{ messages[0].role }}", messages) == "developer"


def test_unknown_keys_reach_the_template():
    messages = [{"role": "user", "content": "x", "name": "Ann", "zip": 7}]
    assert _render("{{ messages[0].name }}{{ messages[0].zip }}", messages) == "Ann7"


def test_a_chatml_template_with_tools_in_hermes_format():
    prompt = ChatTemplate(TemplateTexts(_made("chatml"))).render(CALLED, TOOLS)
    assert json.dumps(TOOLS[0]) in prompt.text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in prompt.text
    assert prompt.text.endswith(
        "<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert "<tool_call>" in prompt.format_text


def test_a_template_of_another_style_and_tool_format():
    prompt = ChatTemplate(TemplateTexts(_made("bracket")), bos="<s>", eos="</s>").render(
        CALLED, TOOLS, {"enable_thinking": True}
    )
    assert prompt.text == (
        f"<s>[AVAILABLE_TOOLS]{json.dumps(TOOLS)}[/AVAILABLE_TOOLS][INST]1+2?[/INST]"
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]</s>'
        "[TOOL_RESULTS]3[/TOOL_RESULTS][THINK]"
    )
    assert "<tool_call>" not in prompt.format_text


# what it is not


def test_chatml_without_a_template():
    messages = [{"role": "system", "content": "s"}, *USER]
    assert _render(CHATML, messages) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_without_tools_is_told_in_text():
    template = ChatTemplate(
        TemplateTexts("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    )
    prompt = template.render([{"role": "system", "content": "s"}, *CALLED], TOOLS)
    assert prompt.text.startswith("<system>s\n\n# Tools")
    assert json.dumps(TOOLS[0]) in prompt.text
    assert prompt.text.endswith(
        '<assistant><tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
        "<user><tool_response>\n3\n</tool_response>"
    )
    assert "<tool_call>" in prompt.format_text


def test_results_of_one_turn_share_a_message():
    messages = [*CALLED, CALLED[2] | {"content": "4"}, *USER]
    text = _render("{% for m in messages %}<{{ m.role }}>{% endfor %}", messages)
    assert text == "<user><assistant><user><user>"


# going on


def test_a_message_is_continued_without_chatml_losing_it_too():
    messages = [*USER, {"role": "assistant", "content": "So "}]
    assert _render("{{ 1 + 'a' }}", messages, continue_final_message=True).endswith(
        "<|im_start|>assistant\nSo "
    )


def test_the_last_text_part_is_continued():
    part = {"type": "text", "text": "a "}
    message = {"role": "assistant", "content": [{"type": "text", "text": "x"}, part, {"type": "y"}]}
    text = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
    assert _render(text, [message], continue_final_message=True) == "x\na "
    assert part["text"] == "a "


@pytest.mark.parametrize("text", ["{{ tools }}", "{{ messages[0].content }}"])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_template_that_hides_the_last_message_cannot_continue_it(
    text: str, tools: list[dict[str, Any]] | None
):
    messages = [*USER, {"role": "assistant", "content": "So "}]
    with pytest.raises(TemplateRenderFailed, match="does not show where") as caught:
        _render(text, messages, tools=tools, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_a_thought_cannot_be_continued_where_even_chatml_has_to_do():
    message = {"role": "assistant", "content": None, "reasoning_content": "Let me"}
    with pytest.raises(TemplateRenderFailed, match="does not show where") as caught:
        _render("{{ 1 + 'a' }}", [*USER, message], continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_a_message_whose_reasoning_the_template_moves_is_continued_after_it():
    text = """{% for m in messages %}
{%- set parts = (m.content or '').split('</think>') %}
{%- if parts | length > 1 %}[{{ parts[0].removeprefix('<think>') }}]{% endif %}{{ parts[-1] }}.
{%- endfor %}"""
    message = {"role": "assistant", "content": "<think>hm</think>So "}
    assert _render(text, [*USER, message], continue_final_message=True) == "hi.[hm]So "


THINKING = (Path(__file__).parent / "templates" / "qwen3.jinja").read_text("utf-8")
THOUGHT = {"role": "assistant", "reasoning_content": "Let me "}


def test_a_message_without_content_is_continued_in_its_reasoning():
    prompt = _render(THINKING, [*USER, THOUGHT | {"content": None}], continue_final_message=True)
    assert prompt.endswith("<think>\nLet me ")


def test_a_message_with_empty_content_is_continued_after_its_reasoning():
    prompt = _render(THINKING, [*USER, THOUGHT | {"content": ""}], continue_final_message=True)
    assert prompt.endswith("<think>\nLet me \n</think>\n\n")


# what it tells of itself


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("{{ messages }}", {"a", "b", "add_generation_prompt"}),
        ("{% if a is defined %}{{ messages }}{% endif %}", {"b", "add_generation_prompt"}),
        ("{% set a = a | default(1) %}{% if add_generation_prompt %}{{ b }}{% endif %}", set()),
        ("{% for a in messages %}{{ a }}{% endfor %}", {"a", "b", "add_generation_prompt"}),
        ("{{ raise_exception('no') }}", {"a", "b"}),
    ],
)
def test_what_a_template_never_looks_at_is_told(text: str, unread: set[str]):
    prompt = ChatTemplate(TemplateTexts(text)).render(USER, kwargs={"a": 1, "b": 2})
    assert prompt.unread == unread


def test_a_conversation_that_had_to_be_changed_is_told_with_the_templates_reason():
    text = """{% for m in messages %}
{%- if m.role == 'system' and not loop.first %}{{ raise_exception('one system turn') }}{% endif %}
{{- m.content }}{% endfor %}"""
    messages = [{"role": "system", "content": "a"}, *USER, {"role": "system", "content": "b"}]
    prompt = ChatTemplate(TemplateTexts(text)).render(messages)
    (warning,) = prompt.warnings
    assert "one system turn" in warning
    assert ChatTemplate(TemplateTexts(text)).render(USER).warnings == ()


def test_a_template_that_gave_way_to_chatml_is_told():
    prompt = ChatTemplate(TemplateTexts("{{ raise_exception('no') }}", origin="here")).render(USER)
    (warning,) = prompt.warnings
    assert warning.startswith("the chat template (here) failed, and ChatML was used instead: ")


# when it fails


@pytest.mark.parametrize("text", ["{{ raise_exception('no') }}", "{% if %}", "{{ 1 + 'a' }}"])
def test_a_failing_template_gives_way_to_chatml(text: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert _render(text, USER) == _render(CHATML, USER)
    assert "using ChatML" in caplog.text


def test_a_failing_template_with_tools_is_an_error():
    with pytest.raises(TemplateRenderFailed, match="no tools here"):
        _render("{{ tools }}{{ raise_exception('no tools here') }}", USER, tools=TOOLS)


def test_messages_that_no_template_can_render_are_an_error():
    deep: Any = {}
    for _ in range(2000):
        deep = {"a": deep}
    call = {"function": {"name": "f", "arguments": deep}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    with pytest.raises(TemplateRenderFailed, match="RecursionError"):
        _render(CHATML, [message])


def test_half_a_surrogate_pair_in_arguments_does_not_reach_the_prompt():
    call = {"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    text = _render("{{ tools }}{{ messages[0].tool_calls | tojson }}", [message])
    assert "\N{REPLACEMENT CHARACTER}" in text
    assert text.encode()

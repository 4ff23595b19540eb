"""A conversation is changed only for a template that rejects it, and then as little as helps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cortex_core.errors import TemplateRenderFailed
from neuron.chat.remedies import Remedies
from neuron.chat.template import ChatTemplate, TemplateTexts
from tests.unit.chat.called import tool

TOOLS = [tool("f")]
_REMEMBERED = 16  # complaints of one template
PLAIN = "{{ tools }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
Messages = list[dict[str, Any]]


def _render(condition: str, messages: Messages, text: str = PLAIN, tools: Any = None) -> str:
    """Through a template that raises where `condition` holds of some message `m`."""
    guard = f"{{% for m in messages %}}{{% if {condition} %}}{{{{ raise_exception('no') }}}}"
    template = ChatTemplate(TemplateTexts(guard + "{% endif %}{% endfor %}" + text))
    return template.render(messages, tools).text.removeprefix("None")


def _said(*turns: str) -> Messages:
    """Turns as "role content"."""
    return [dict(zip(("role", "content"), turn.split(" ", 1), strict=True)) for turn in turns]


def _called(call_id: Any, content: str | None = None) -> Messages:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    return [
        {"role": "user", "content": "do"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": "done"},
    ]


def test_a_second_system_turn_stays_where_the_template_takes_it():
    messages = _said("system a", "user b", "system c")
    assert _render("false", messages) == "<system>a<user>b<system>c"


def test_system_turns_are_one_where_the_template_rejects_a_second():
    messages = _said("system a", "user b", "system c", "user d")
    assert _render("m.role == 'system' and not loop.first", messages) == (
        "<system>a\n\nc<user>b<user>d"
    )


def test_system_turns_go_into_the_users_where_the_template_has_none():
    messages = _said("system a", "user b", "assistant c", "system d")
    assert _render("m.role == 'system'", messages) == "<user>a\n\nb<assistant>c<user>d"


def test_neighbours_are_one_turn_where_roles_must_alternate():
    messages = _said("user a", "user b", "assistant c", "assistant d", "user e")
    condition = "loop.previtem is defined and loop.previtem.role == m.role"
    assert _render(condition, messages) == "<user>a\n\nb<assistant>c\n\nd<user>e"


def test_parts_and_text_are_joined_as_parts():
    parts = [{"type": "text", "text": "b"}]
    messages = [*_said("user a"), {"role": "user", "content": parts}]
    loop = "{% for m in messages %}{% if m.content is string %}{% endif %}{% for p in m.content %}"
    text = "{{ tools }}" + loop + "{{ p.text }}{% endfor %};{% endfor %}"
    assert _render("loop.index > 1", messages, text) == "ab;"


def test_ids_are_nine_characters_where_the_template_wants_that():
    condition = "m.tool_call_id is defined and m.tool_call_id | length != 9"
    text = (
        "{{ tools }}{% for m in messages %}"
        "[{{ m.tool_call_id }}{{ m.tool_calls[0].id if m.tool_calls }}]{% endfor %}"
    )
    for given in ("call_0123456789abcdef", None, 5):
        messages = _called(given)
        messages[2]["tool_call_id"] = str(given)
        met = re.fullmatch(r"\[\]\[(\w{9})\]\[(\w{9})\]", _render(condition, messages, text))
        assert met is not None
        assert met[1] == met[2]
    assert _render(condition, _called("abcdefghi"), text) == "[][abcdefghi][abcdefghi]"


def test_a_template_that_works_on_text_gets_arguments_as_text():
    text = "{{ tools }}{{ messages[1].tool_calls[0].function.arguments.strip().upper() }}"
    assert _render("false", _called("x"), text) == '{"A": 1}'


def test_arguments_are_an_object_and_their_text_at_once():
    arguments = "messages[1].tool_calls[0].function.arguments"
    for printed in (f"{{{{ {arguments} }}}}", f"{{{{ '' + {arguments} + '' }}}}"):
        assert _render("false", _called("x"), "{{ tools }}" + printed) == '{"a": 1}'
    text = f"{{{{ tools }}}}{{{{ {arguments} ~ {arguments}.a ~ ({arguments} is mapping) }}}}"
    assert _render("false", _called("x"), text) == '{"a": 1}1True'


def test_an_argument_is_not_hidden_by_what_arguments_can_do():
    messages = _called("x")
    arguments = '{"text": "t", "__text": "u", "_Arguments__text": "v"}'
    messages[1]["tool_calls"][0]["function"]["arguments"] = arguments
    text = "{{ tools }}{% set a = messages[1].tool_calls[0].function.arguments %}{{ a.text }}"
    assert _render("false", messages, text) == "t"


def test_a_template_that_needs_content_gets_an_empty_one():
    text = "{{ tools }}{% for m in messages %}{{ m.content.strip() + ';' }}{% endfor %}"
    assert _render("false", _called("x"), text) == "do;;done;"


def test_several_remedies_can_be_needed():
    messages = _said("system a", "system b", "user c", "user d")
    condition = "m.role == 'system' or (loop.previtem and loop.previtem.role == m.role)"
    assert _render(condition, messages) == "<user>a\n\nb\n\nc\n\nd"


def test_a_template_that_rejects_everything_says_its_first_reason():
    with pytest.raises(TemplateRenderFailed, match=r"failed with tools: TemplateError: no"):
        _render("true", _said("user a", "user b"), tools=TOOLS)


def test_remedies_leave_the_conversation_as_it_is():
    messages = [*_said("system a", "user b"), *_called("x"), *_said("system c")]
    before = repr(messages)
    tried = list(Remedies().tried(messages, "no"))
    assert repr(messages) == before
    assert all(changed != messages for _, changed in tried)
    assert list(Remedies().tried(_said("user a", "assistant b"), "no")) == []


def test_what_helped_against_a_complaint_is_tried_first_against_the_same():
    messages = [*_said("system a", "user b"), *_called("x"), *_said("system c")]
    remedies = Remedies()
    ways = [way for way, _ in remedies.tried(messages, "no")]
    assert sorted(map(len, ways)) == list(map(len, ways))
    assert {1, 2, 3} <= set(map(len, ways))
    for way in ways:
        remedies.learn(str(way), way)
    for way in ways[:_REMEMBERED]:
        tried = [each for each, _ in remedies.tried(messages, str(way))]
        assert tried == [way, *(each for each in ways if each != way)]
        assert list(remedies.tried(_said("user a"), str(way))) == []
    assert [way for way, _ in remedies.tried(messages, "another")] == ways


def test_of_a_template_that_complains_in_ever_new_words_not_all_is_kept():
    messages = _called("x")
    remedies = Remedies()
    ways = [way for way, _ in remedies.tried(messages, "no")]
    for count in range(100):
        remedies.learn(str(count), ways[-1])
    assert next(remedies.tried(messages, str(_REMEMBERED - 1)))[0] == ways[-1]
    assert next(remedies.tried(messages, str(_REMEMBERED)))[0] == ways[0]


def test_what_two_remedies_can_do_is_not_left_to_more():
    guard = "{% for m in messages %}{% if (m.role == 'system' and not loop.first) or "
    guard += "(m.tool_call_id and m.tool_call_id | length != 9) %}{{ raise_exception('no') }}"
    text = "{% endif %}{% endfor %}{{ tools }}{% for m in messages %}<{{ m.role }}>"
    text += "{{ m.tool_calls[0].function.arguments.a if m.tool_calls else m.content }}{% endfor %}"
    template = ChatTemplate(TemplateTexts(guard + text))
    messages = [*_said("system a"), *_called("call_of_many_letters"), *_said("system b")]
    for _ in range(2):
        prompt = template.render(messages, TOOLS).text
        assert prompt.endswith("<system>a\n\nb<user>do<assistant>1<tool>done")


def test_remedies_that_are_needed_together_are_not_when_one_does():
    text = (
        "{% for m in messages %}{% if m.role == 'system' or (loop.previtem and "
        "loop.previtem.role == m.role) %}{{ raise_exception('no') }}{% endif %}{% endfor %}" + PLAIN
    )
    template = ChatTemplate(TemplateTexts(text))
    both = _said("system a", "user b", "user c")
    one = _said("user b", "user c", "assistant ")
    one[-1]["content"] = None
    for _ in range(2):
        assert template.render(both, None).text == "None<user>a\n\nb\n\nc"
        assert template.render(one, None).text == "None<user>b\n\nc<assistant>"


def test_a_remedy_that_helped_changes_nothing_that_is_taken_as_it_is():
    guard = "{% for m in messages %}{% if m.tool_call_id and m.content == 'done' and "
    guard += "m.tool_call_id | length != 9 %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    text = "{{ tools }}{% for m in messages %}[{{ m.tool_call_id }}]{% endfor %}"
    template = ChatTemplate(TemplateTexts(guard + text))
    for _ in range(2):
        assert "call_1" not in template.render(_called("call_1"), TOOLS).text
        taken = _called("call_1")
        taken[2]["content"] = "other"
        assert "[call_1]" in template.render(taken, TOOLS).text


def test_a_template_that_takes_too_long_over_a_remedy_ends_the_search():
    text = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(
        TemplateTexts(
            "{{ tools }}{% if messages[3] %}{{ raise_exception('no') }}{% endif %}" + text
        )
    )
    with pytest.raises(TemplateRenderFailed, match=r"TemplateError: no"):
        template.render(_said("system a", "system b", "user c", "user d"), TOOLS)

"""Find tool calls in the text of an answer, as it comes, in the format the template taught.

A format is known by the marks its template writes, never by a model's name. To add one, describe it
to one of the machines in `neuron.chat.calls`, or write another, and choose it in `parser_for`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from neuron.chat.calls.addressed_calls import AddressedCalls
from neuron.chat.calls.argument import schemas_of
from neuron.chat.calls.json_calls import JsonCalls, JsonFormat
from neuron.chat.calls.keyed_calls import KeyedCalls, KeyedFormat
from neuron.chat.calls.machine import CallEvent
from neuron.chat.calls.named_calls import BracketCalls, SectionCalls, SectionFormat

__all__ = ["ToolCallParser", "form_of", "is_addressed", "new_call_id", "parser_for", "reader_for"]


class ToolCallParser(Protocol):
    def feed(self, text: str) -> list[CallEvent]:
        """What `text` decides. A call's name comes before its arguments; text that is no call
        after all is given back as Text."""
        ...

    def mark(self, header: str) -> tuple[list[CallEvent], bool]:
        """What a marker decides that the worker told apart by token id, and whether it is part of
        a call."""
        ...

    def finish(self) -> list[CallEvent]:
        """What was still undecided when the answer ended."""
        ...


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


_SECTIONS = (
    SectionFormat(
        section="<｜tool▁calls▁begin｜>",
        section_end="<｜tool▁calls▁end｜>",
        call="<｜tool▁call▁begin｜>",
        arguments="<｜tool▁sep｜>",
        call_end="<｜tool▁call▁end｜>",
    ),
    SectionFormat(
        section="<|tool_calls_section_begin|>",
        section_end="<|tool_calls_section_end|>",
        call="<|tool_call_begin|>",
        arguments="<|tool_call_argument_begin|>",
        call_end="<|tool_call_end|>",
        is_numbered=True,
    ),
)
_ACTIONS = JsonFormat(
    opens=("<|START_ACTION|>",),
    closes=("<|END_ACTION|>",),
    name_keys=("tool_name",),
    hidden=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
_LIST = JsonFormat(opens=("<|tool_call|>",), closes=("<|/tool_call|>",))
_TAGGED = JsonFormat(opens=("<tool_call>",), closes=("</tool_call>",))
_BARE = JsonFormat(
    opens=("<|python_tag|>",), name_keys=("name", "function"), separator=";", is_bare=True
)

_BLOCK = re.compile(r"<((?:\w+:)?)tool_call>")  # some write it in a namespace of their own
_TAUGHT_BARE = re.compile(r'<\|python_tag\|>|"name":[^\n]{0,80}"parameters":')


def parser_for(
    template: str,
    tools: Sequence[Mapping[str, Any]] = (),
    new_id: Callable[[], str] = new_call_id,
) -> ToolCallParser | None:
    """A parser for the format that the template's text speaks of; None if it speaks of none.

    `tools` are the offered ones: their schemas give untyped arguments a type, and where a format
    does not mark its calls, their names tell a call from other text.
    """
    if is_addressed(template):
        return AddressedCalls(new_id)
    for section in _SECTIONS:
        if section.call in template:
            return SectionCalls(section, new_id)
    if "[TOOL_CALLS]" in template:
        return BracketCalls(new_id)
    if keyed := _keyed_format(template):
        return KeyedCalls(keyed, tools, new_id)
    for form in (_ACTIONS, _LIST, _TAGGED):
        if form.opens[0] in template:
            return JsonCalls(form, (), new_id)
    if _TAUGHT_BARE.search(template):
        return JsonCalls(_BARE, schemas_of(tools), new_id)
    return None


def reader_for(
    template: str,
    tools: Sequence[Mapping[str, Any]] = (),
    new_id: Callable[[], str] = new_call_id,
) -> ToolCallParser | None:
    """What reads an answer where `tools` were offered. Where none were, nothing is a call, and a
    parser is needed only for a format that frames every answer with marks of its own."""
    if tools:
        return parser_for(template, tools, new_id)
    form = form_of(template)
    if not isinstance(form, JsonFormat) or not form.hidden:
        return None
    return JsonCalls(JsonFormat(opens=(), hidden=form.hidden), (), new_id)


def is_addressed(template: str) -> bool:
    """Whether `parser_for` takes messages that are addressed to a function for calls."""
    return "<|channel|>" in template and "<|message|>" in template


def form_of(template: str) -> JsonFormat | SectionFormat | KeyedFormat | None:
    """How `parser_for` reads the calls of this template, if not as messages."""
    parser = parser_for(template)
    return parser.form if isinstance(parser, JsonCalls | SectionCalls | KeyedCalls) else None


def _keyed_format(template: str) -> KeyedFormat | None:
    met = _BLOCK.search(template)
    space = met[1] if met else ""
    block, block_end = f"<{space}tool_call>", f"</{space}tool_call>"
    if "<arg_key>" in template:
        return KeyedFormat(
            block, block_end, name="", name_end="", key="<arg_key>", key_end="</arg_key>",
            value="<arg_value>", value_end="</arg_value>", call_end="",
        )  # fmt: skip
    if '<invoke name="' in template:
        return KeyedFormat(
            block, block_end, name='<invoke name="', name_end='">', key='<parameter name="',
            key_end='">', value="", value_end="</parameter>", call_end="</invoke>", is_grouped=True,
        )  # fmt: skip
    if "<function=" in template and "<parameter=" in template:
        return KeyedFormat(
            block, block_end, name="<function=", name_end=">", key="<parameter=", key_end=">",
            value="", value_end="</parameter>", call_end="</function>", is_padded=True,
        )  # fmt: skip
    return None

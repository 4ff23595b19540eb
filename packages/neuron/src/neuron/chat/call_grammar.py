"""What the worker is to hold an answer to: its content, its tool calls, or whichever of the two it
is. Pure.

Calls are written as the template taught the model to write them. The formats known here are those
of JSON objects between marks (Hermes, `[TOOL_CALLS]`), or in messages addressed to a function, or,
where a call has to come, without any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cortex_core.envelopes.openai_chat import ChatRequest, ToolChoice
from cortex_core.errors import UnsupportedParameter
from cortex_core.wire.sampling import CallForm, Calls, Constraint
from neuron.chat.tool_calls import is_addressed, json_form

__all__ = ["constraint_for", "is_strict_ignored"]

_COMBINING = ("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref")


@dataclass(frozen=True, slots=True)
class _Writing:
    """How a format writes a call: `before` with the place NAME or, quoted, "NAME". Without
    `opens` it cannot be told from text."""

    opens: str
    before: str
    after: str
    closes: str
    separator: str


_HERMES = _Writing("<tool_call>", '\n{"name": "NAME", "arguments": ', "}", "\n</tool_call>", "\n")
_BRACKETED = _Writing("[TOOL_CALLS]", "NAME[ARGS]", "", "", "")
_BRACKETED_LIST = _Writing("[TOOL_CALLS]", '[{"name": "NAME", "arguments": ', "}]", "", "")
_ADDRESSED = _Writing(
    "", "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>", "", "", ""
)
_BARE = _Writing("", '{"name": "NAME", "parameters": ', "}", "", "; ")


def constraint_for(request: ChatRequest, template: str) -> Constraint | None:
    """None where the answer is free. `template` is the text that tells the calls' format. Raises
    UnsupportedParameter for what cannot be held to in this format."""
    content = request.content_grammar
    if not request.offered_tools:
        return content
    is_required = request.tool_choice == "required" or isinstance(request.tool_choice, ToolChoice)
    is_single = request.parallel_tool_calls is False
    writing = _writing(template, is_required=is_required)
    is_strict = any(map(_is_strict, request.offered_tools)) and writing is not None
    if not (is_required or is_single or is_strict or content is not None):
        return None
    if content is not None and not is_required and content.kind == "gbnf":
        raise UnsupportedParameter(
            "grammar: cannot be held to where tools may be called instead; `tool_choice` none "
            "forbids that",
            param="grammar",
        )
    if writing is None:
        reason = "tool_choice" if is_required else "parallel_tool_calls"
        if content is not None and not is_required:
            reason = content.param.partition(".")[0]
        raise UnsupportedParameter(
            f"{reason}: cannot be held to in the format in which this model writes tool calls",
            param=reason,
        )
    return Calls(
        tuple(
            _form(tool["function"], index, writing)
            for index, tool in enumerate(request.offered_tools)
            if _may_call(request.tool_choice, tool)
        ),
        writing.opens,
        writing.closes,
        writing.separator,
        is_required=is_required,
        is_single=is_single,
        content=None if is_required else content,
        is_addressed=writing is _ADDRESSED,
    )


def is_strict_ignored(request: ChatRequest, template: str) -> bool:
    """Whether a tool is `strict`, and calls in this format cannot be held to that."""
    is_strict = any(map(_is_strict, request.offered_tools))
    return (
        is_strict
        and _writing(template, is_required=False) is None
        and (request.tool_choice in (None, "auto"))
    )


def _writing(template: str, *, is_required: bool) -> _Writing | None:
    if is_addressed(template):
        return _ADDRESSED
    form = json_form(template)
    if form is None:
        return None
    if form.is_bare:
        return _BARE if is_required else None
    if form.opens == ("<tool_call>",):
        return _HERMES
    if form.opens == ("[TOOL_CALLS]",):
        return _BRACKETED if "[ARGS]" in template else _BRACKETED_LIST
    return None


def _may_call(choice: object, tool: Mapping[str, Any]) -> bool:
    return not isinstance(choice, ToolChoice) or tool["function"]["name"] == choice.function.name


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return tool["function"].get("strict") is True


def _form(function: Mapping[str, Any], index: int, writing: _Writing) -> CallForm:
    name = function["name"]
    if '"' in writing.before:
        name = json.dumps(name, ensure_ascii=False)[1:-1]
    return CallForm(
        writing.before.replace("NAME", name),
        json.dumps(_arguments(function)),
        writing.after,
        f"tools[{index}].function.parameters",
    )


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object, as arguments always are. Without `strict` what cannot be held to in
    it is passed over; and what it does not list is left out: small models make it up."""
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    schema |= function.get("parameters") or {}
    if not any(key in schema for key in _COMBINING):
        schema["additionalProperties"] = False
    if function.get("strict") is not True:
        schema["x-guidance"] = {"lenient": True}
    return schema

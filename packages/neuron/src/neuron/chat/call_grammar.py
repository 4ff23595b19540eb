"""What the worker is to hold an answer to: its content, its tool calls, or whichever of the two it
is. Pure.

Calls are written as the template taught the model to write them. Where it marks them, they are held
to their schemas; where it does not, they can only be where a call has to come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cortex_core.envelopes.openai_chat import ChatRequest, ToolChoice
from cortex_core.errors import UnsupportedParameter
from cortex_core.wire.sampling import CallForm, Calls, Constraint
from neuron.chat.calls.json_calls import JsonFormat
from neuron.chat.calls.plain_values import Unwritable
from neuron.chat.calls.writing import ADDRESSED, BARE, Writing, writing_for
from neuron.chat.tool_calls import form_of, is_addressed

__all__ = ["constraint_for", "is_strict_ignored"]


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
        is_addressed=writing is ADDRESSED,
        is_grouped=writing.is_grouped,
        barred=writing.barred,
    )


def is_strict_ignored(request: ChatRequest, template: str) -> bool:
    """Whether a tool is `strict`, and calls in this format cannot be held to that."""
    is_strict = any(map(_is_strict, request.offered_tools))
    return (
        is_strict
        and _writing(template, is_required=False) is None
        and (request.tool_choice in (None, "auto"))
    )


def _writing(template: str, *, is_required: bool) -> Writing | None:
    if is_addressed(template):
        return ADDRESSED
    form = form_of(template)
    if is_required and isinstance(form, JsonFormat) and form.is_bare:
        return BARE
    return writing_for(form, template)


def _may_call(choice: object, tool: Mapping[str, Any]) -> bool:
    return not isinstance(choice, ToolChoice) or tool["function"]["name"] == choice.function.name


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return tool["function"].get("strict") is True


def _form(function: Mapping[str, Any], index: int, writing: Writing) -> CallForm:
    param = f"tools[{index}].function.parameters"
    try:
        return writing.form(function, param)
    except Unwritable as error:
        raise UnsupportedParameter(
            f"{param}: {error} cannot be held to in the format in which this model writes tool "
            "calls",
            param=param,
        ) from None

"""What the plain objects of a request look like, for the API's document.

Messages, items and tools are read place by place, so that a refusal names the place; nothing
decodes these types. Most of what a test makes up from them has to be answered.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from cortex_core.envelopes import constraints, openai_chat, openai_responses
from cortex_core.envelopes.sampling import RANGES

__all__ = ["SHAPES", "bounded"]

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Schema = dict[str, Any]


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class RedactedThinkingBlock(msgspec.Struct, tag_field="type", tag="redacted_thinking"):
    data: str


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: _Text
    name: _Text
    input: dict[str, Any]


class ToolResultBlock(msgspec.Struct, tag_field="type", tag="tool_result"):
    tool_use_id: _Text
    content: str | list[TextBlock] = ""
    is_error: bool = False


class TextSource(msgspec.Struct, tag_field="type", tag="text"):
    data: str


class ContentSource(msgspec.Struct, tag_field="type", tag="content"):
    content: str | list[TextBlock]


class DocumentBlock(msgspec.Struct, tag_field="type", tag="document"):
    source: TextSource | ContentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(msgspec.Struct, tag_field="type", tag="search_result"):
    title: str
    source: str
    content: list[TextBlock]


class UserMessage(msgspec.Struct, tag_field="role", tag="user"):
    content: str | list[TextBlock | ToolResultBlock | DocumentBlock | SearchResultBlock]


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    content: str | list[TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock]


class SystemMessage(msgspec.Struct, tag_field="role", tag="system"):
    content: str | list[TextBlock]


class MessagesTool(msgspec.Struct):
    name: _Text
    input_schema: _Schema
    type: Literal["custom"] = "custom"
    description: str | None = None
    strict: bool | None = None


class InputText(msgspec.Struct, tag_field="type", tag="input_text"):
    text: str


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str


class SummaryText(msgspec.Struct, tag_field="type", tag="summary_text"):
    text: str


class InputMessage(msgspec.Struct, tag_field="type", tag="message"):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText | OutputText]


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    summary: list[SummaryText]
    encrypted_content: str | None = None


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    call_id: _Text
    name: _Text
    arguments: str


class FunctionCallOutputItem(msgspec.Struct, tag_field="type", tag="function_call_output"):
    call_id: _Text
    output: str | list[InputText]


class CustomToolCallItem(msgspec.Struct, tag_field="type", tag="custom_tool_call"):
    call_id: _Text
    name: _Text
    input: str


class CustomToolCallOutputItem(msgspec.Struct, tag_field="type", tag="custom_tool_call_output"):
    call_id: _Text
    output: str | list[InputText]


class ItemReference(msgspec.Struct, tag_field="type", tag="item_reference"):
    id: _Text


class FunctionTool(msgspec.Struct, tag_field="type", tag="function"):
    name: _Text
    parameters: _Schema | None = None
    description: str | None = None
    strict: bool | None = None


class CustomTool(msgspec.Struct, tag_field="type", tag="custom"):
    name: _Text
    description: str | None = None


class ChosenTool(msgspec.Struct):
    type: Literal["function", "custom"]
    name: _Text


class ChatMessage(openai_chat.MessageShape, frozen=True):
    """Extras are kept for the template."""

    content: str | list[TextBlock] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


class ThinkingWithBudget(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, msgspec.Meta(ge=1)]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingWithout(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["disabled", "adaptive", "between_tools"]
    display: Literal["summarized", "omitted"] | None = None


class ChoiceOfOne(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["tool"]
    name: _Text
    disable_parallel_tool_use: bool | None = None


class ChoiceOfAny(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class PlainFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object"]


class SchemaFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    name: str
    schema: _Schema
    strict: bool | None = None
    description: str | None = None


class NestedSchemaFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    json_schema: constraints.JsonSchemaFormat


_Item = (
    InputMessage
    | ReasoningItem
    | FunctionCallItem
    | FunctionCallOutputItem
    | CustomToolCallItem
    | CustomToolCallOutputItem
    | ItemReference
)
_SOME = msgspec.Meta(min_length=1)
_INCLUDABLE = msgspec.Meta(extra_json_schema={"enum": list(openai_responses.INCLUDABLE)})

SHAPES: dict[str, dict[str, tuple[Any, ...]]] = {
    "ChatRequest": {
        "messages": (Annotated[list[ChatMessage], _SOME],),
        "tools": (list[openai_chat.ToolDefinition], None),
        "response_format": (PlainFormat, NestedSchemaFormat, None),
    },
    "MessagesRequest": {
        "messages": (Annotated[list[UserMessage | AssistantMessage | SystemMessage], _SOME],),
        "system": (str, list[TextBlock], None),
        "thinking": (ThinkingWithBudget, ThinkingWithout, None),
        "tools": (list[MessagesTool],),
        "tool_choice": (ChoiceOfOne, ChoiceOfAny, None),
        "mcp_servers": (Annotated[list[Any], msgspec.Meta(max_length=0)],),
        "thread": (None,),
    },
    "ResponsesRequest": {
        "input": (_Text, Annotated[list[_Item], _SOME]),
        "tools": (list[FunctionTool | CustomTool],),
        "tool_choice": (Literal["auto", "none", "required"], ChosenTool, None),
        "include": (list[Annotated[str, _INCLUDABLE]],),
        "background": (Literal[False],),
        "truncation": (Literal["disabled"],),
    },
    "TextOptions": {"format": (PlainFormat, SchemaFormat, None)},
}
"""By the name of a type, what its fields may be where the type itself says less."""


def bounded(schema: dict[str, Any]) -> None:
    """Write the bounds of numbers that are checked beyond a request's type into its schema."""
    for name, described in schema["properties"].items():
        bounds = RANGES.get("max_tokens" if name == "max_output_tokens" else name)
        for branch in described.get("anyOf", [described]):
            if bounds is not None and branch.get("type") in ("integer", "number"):
                branch["minimum"], branch["maximum"] = bounds

"""The tools of a Responses request as functions of a chat, and whose calls those are.

A chat's functions have one name each and take JSON. So a tool in a namespace goes by both names
together, and a custom tool's free text is the one argument of a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from cortex_core.errors import InvalidRequest, UnsupportedParameter
from cortex_core.translate.fields import string, unread_of_tools

__all__ = ["Called", "Offer", "function_name", "offered"]

Tool = dict[str, Any]

_FUNCTION_KEYS = ("name", "description", "parameters", "strict")
_FREE_TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
# Agents offer these beside their own tools to whatever model there is (Codex always does), and an
# answer can do without. What else a provider would run holds what the request is about.
_DISPENSABLE = ("image_generation", "tool_search", "web_search")


class Called(msgspec.Struct, frozen=True):
    """A tool as its client calls it."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


class Offer(msgspec.Struct, frozen=True):
    """`functions`: the chat's tools; `places`: where each is in the request, by the chat's place.
    `called`: the client's tool by the function's name. `ignored`: what has no effect."""

    functions: list[dict[str, Any]]
    places: dict[str, str]
    called: dict[str, Called]
    ignored: list[str]


class _Placed(msgspec.Struct, frozen=True):
    at: str
    tool: Tool
    namespace: str | None = None

    @property
    def is_dispensable(self) -> bool:
        return str(self.tool.get("type")).startswith(_DISPENSABLE)

    @property
    def has_grammar(self) -> bool:
        return (self.tool.get("format") or {}).get("type") == "grammar"


def function_name(name: str, namespace: str | None) -> str:
    """What the chat calls the tool `name` of `namespace`."""
    if not namespace:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def offered(tools: list[Tool]) -> Offer:
    """Raises InvalidRequest or UnsupportedParameter that names the place, e.g. `tools[2].name`.

    A dispensable tool is left out beside others; alone it is what the request is about.
    """
    every = [*_placed(tools)]
    kept = [each for each in every if not each.is_dispensable] or every
    offer = Offer([], {}, {}, [])
    for each in kept:
        function, called = _function(each)
        if offer.called.setdefault(function["name"], called) != called:
            param = f"{each.at}.name"
            raise InvalidRequest(f"{param}: another tool goes by this name, too", param=param)
        offer.places[f"tools[{len(offer.functions)}]"] = each.at
        offer.functions.append({"type": "function", "function": function})
    left_out = {each.tool["type"] for each in every} - {each.tool["type"] for each in kept}
    offer.ignored.extend(f"tools.{kind}" for kind in sorted(left_out))
    read = ("type", "format", *_FUNCTION_KEYS)
    offer.ignored.extend(unread_of_tools((each.tool for each in kept), read))
    if any(each.has_grammar for each in kept):
        offer.ignored.append("tools.format")
    if any(tool.get("type") == "namespace" and tool.get("description") for tool in tools):
        offer.ignored.append("tools.namespace.description")
    return offer


def _placed(tools: list[Tool]) -> Iterator[_Placed]:
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        if tool.get("type") != "namespace":
            yield _Placed(at, tool)
            continue
        namespace = _name(tool, at)
        for inner, each in enumerate(_inside(tool, at)):
            yield _Placed(f"{at}.tools[{inner}]", each, namespace)


def _inside(namespace: Tool, at: str) -> list[Tool]:
    tools, param = namespace.get("tools"), f"{at}.tools"
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequest(f"{param}: expected an array of tools", param=param)
    return tools


def _function(placed: _Placed) -> tuple[dict[str, Any], Called]:
    tool, at, kind = placed.tool, placed.at, placed.tool.get("type")
    if kind not in ("function", "custom"):
        raise UnsupportedParameter(
            f"{at}: a tool of type {kind!r} would be the provider's to run; there is none here",
            param=at,
        )
    called = Called(_name(tool, at), placed.namespace, kind == "custom")
    function: dict[str, Any] = {
        key: tool[key] for key in _FUNCTION_KEYS if tool.get(key) is not None
    }
    if called.is_custom:
        function = {"parameters": _FREE_TEXT}
        if description := _described(tool, at):
            function["description"] = description
    return function | {"name": function_name(called.name, called.namespace)}, called


def _name(tool: Tool, at: str) -> str:
    name = string(tool, "name", at)
    if not name:
        raise InvalidRequest(f"{at}.name: must not be empty", param=f"{at}.name")
    return name


def _described(tool: Tool, at: str) -> str:
    """With the grammar of its text, which can be told and not enforced: within a call the text is
    a string of JSON."""
    texts = [string(tool, "description", at, "")]
    form, here = tool.get("format") or {"type": "text"}, f"{at}.format"
    if not isinstance(form, dict) or form.get("type") not in ("text", "grammar"):
        raise UnsupportedParameter(f"{here}: only text and grammars are supported", param=here)
    if form["type"] == "grammar":
        syntax, rules = string(form, "syntax", here), string(form, "definition", here)
        texts.append(f"The input has to follow this grammar ({syntax}):\n{rules}")
    return "\n\n".join(filter(None, texts))

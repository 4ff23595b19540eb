"""How each format writes a call, for an answer to be held to it. Pure.

What is between the marks (line breaks, a fence, an id) is as the template shows it, since that is
what the model learnt to write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cortex_core.wire.sampling import CallForm, CallPart
from neuron.chat.calls.json_calls import JsonFormat
from neuron.chat.calls.keyed_calls import KeyedFormat
from neuron.chat.calls.named_calls import SectionFormat
from neuron.chat.calls.plain_values import Unwritable, object_schema, plain_value, spelt

__all__ = ["ADDRESSED", "BARE", "Writing", "writing_for"]

_NAME = re.compile(r"[\w.:/@$-]{1,256}")  # what a parser takes for a name without quotes
_NUMBER = "[0-9]{1,4}"
_CALL_ID = "[a-zA-Z0-9]{9}"
_COMBINING = ("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref")


@dataclass(frozen=True, slots=True)
class Writing:
    """What a call is written between, and how: `before` with the place NAME or, quoted, "NAME".
    Where something else is to be written before the arguments, it matches `counted`, and `named`
    follows. `keyed`: the arguments have marks of their own. See Calls for the rest."""

    opens: str
    before: str
    after: str
    closes: str
    separator: str
    is_grouped: bool = False
    barred: tuple[str, ...] = ()
    counted: str = ""
    named: str = ""
    keyed: KeyedFormat | None = None
    gaps: Mapping[str, str] | None = None

    def form(self, function: Mapping[str, Any], param: str) -> CallForm:
        """Of one tool. Raises Unwritable for what this format cannot hold in its schema, which is
        called `param`, or its name."""
        name = function["name"]
        if '"NAME"' in self.before + self.named:
            name = json.dumps(name, ensure_ascii=False)[1:-1]
        elif not _NAME.fullmatch(name):
            raise Unwritable(f"the name {name!r}")
        before, after = self.before.replace("NAME", name), self.after
        if self.keyed is not None:
            return CallForm(before, "", after, param, self._keyed_parts(self.keyed, function))
        parts = ()
        if self.counted:
            parts = (CallPart("", self.named.replace("NAME", name), self.counted),)
        return CallForm(before, json.dumps(_arguments(function)), after, param, parts)

    def _keyed_parts(self, keyed: KeyedFormat, function: Mapping[str, Any]) -> tuple[CallPart, ...]:
        root = function.get("parameters")
        is_strict = _is_strict(function)
        schemas, required = object_schema(root, is_strict=is_strict)
        gaps = self.gaps or {}
        padding = "\n" if keyed.is_padded else ""
        closing = f"(?s:.*){spelt(keyed.value_end)}(?s:.*)"
        parts: list[CallPart] = []
        for key, schema in schemas.items():
            if not key.strip() or key != key.strip() or keyed.key_end in key or len(key) > 256:
                raise Unwritable(f"the name {key!r}")
            try:
                plain = plain_value(schema, root, is_strict=is_strict)
            except Unwritable as error:
                raise Unwritable(f"properties.{key}: {error}") from None
            if plain.schema is not None and not is_strict:
                plain.schema["x-guidance"] = {"lenient": True}
            value = gaps[keyed.value] + keyed.value if keyed.value else ""
            parts.append(
                CallPart(
                    f"{gaps[keyed.key]}{keyed.key}{key}{keyed.key_end}{value}{padding}",
                    padding + keyed.value_end,
                    plain.text,
                    "|".join((closing, *plain.barred)) if plain.text else "",
                    "" if plain.schema is None else json.dumps(plain.schema),
                    key in required,
                )
            )
        return tuple(parts)


_ADDRESS = "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>"
ADDRESSED = Writing("", _ADDRESS, "", "", "")
"""A message for each call."""

BARE = Writing("", '{"name": "NAME", "parameters": ', "}", "", "; ")
"""Without marks, where a call has to come."""


def writing_for(
    form: JsonFormat | SectionFormat | KeyedFormat | None, template: str
) -> Writing | None:
    """How calls are written that are read by `form`; None where they cannot be told from text, or
    are none."""
    if isinstance(form, SectionFormat):
        return _section(form, template)
    if isinstance(form, KeyedFormat):
        return _keyed(form, template)
    if form is None or form.is_bare:
        return None
    (opens,), closes = form.opens, "".join(form.closes)
    if opens == "[TOOL_CALLS]":
        return _bracketed(template)
    if form.name_keys == ("tool_name",):
        before, named = '\n    {"tool_call_id": "', '", "tool_name": "NAME", "parameters": '
        return _listed(opens, before, "\n]" + closes, ",", counted=_NUMBER, named=named)
    call = '{"name": "NAME", "arguments": '
    if opens == "<tool_call>":
        return Writing(opens, "\n" + call, "}", "\n" + closes, "\n")
    return _listed(opens, call, "]" + (closes if closes in template else ""), ", ")


def _listed(
    opens: str, before: str, closes: str, separator: str, *, counted: str = "", named: str = ""
) -> Writing:
    return Writing(
        opens + "[", before, "}", closes, separator,
        is_grouped=True, barred=(opens,), counted=counted, named=named,
    )  # fmt: skip


def _bracketed(template: str) -> Writing:
    opens = "[TOOL_CALLS]"
    if "[CALL_ID]" in template:
        return Writing(opens, "NAME[CALL_ID]", "", "", "", counted=_CALL_ID, named="[ARGS]")
    if "[ARGS]" in template:
        return Writing(opens, "NAME[ARGS]", "", "", "")
    gap = " " if f"{opens} [" in template else ""
    call = '{"name": "NAME", "arguments": '
    return Writing(
        opens + gap + "[", call, "}", "]", ", ", is_grouped=True, barred=(opens,)
    )  # fmt: skip


def _section(form: SectionFormat, template: str) -> Writing:
    opens, closes, barred = form.section, form.section_end, (form.call,)
    if form.is_numbered:
        return Writing(
            opens, form.call + "functions.NAME:", form.call_end, closes, "",
            is_grouped=True, barred=barred, counted=_NUMBER, named=form.arguments,
        )  # fmt: skip
    if "```json" in template:
        before, after = f"{form.call}function{form.arguments}NAME\n```json\n", "\n```"
        return Writing(opens, before, after + form.call_end, closes, "\n", True, barred)
    before = f"{form.call}NAME{form.arguments}"
    return Writing(opens, before, form.call_end, closes, "", True, barred)


def _keyed(form: KeyedFormat, template: str) -> Writing:
    marks = (form.block, form.block_end, form.name, form.key, form.value, form.call_end)
    gaps = {mark: _gap(mark, template) for mark in marks if mark} | {"": ""}
    return Writing(
        form.block,
        gaps[form.name] + form.name + "NAME" + form.name_end,
        gaps[form.call_end] + form.call_end,
        gaps[form.block_end] + form.block_end,
        "" if form.is_grouped else gaps[form.block],
        form.is_grouped,
        barred=(form.name,) if form.name else (),
        keyed=form,
        gaps=gaps,
    )


def _gap(mark: str, template: str) -> str:
    """A line break, if the template has one before the mark: as such or, in a text of its own,
    escaped."""
    return "\n" if f"\n{mark}" in template or f"\\n{mark}" in template else ""


def _is_strict(function: Mapping[str, Any]) -> bool:
    return function.get("strict") is True


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object, as arguments always are. Without `strict` what cannot be held to in
    it is passed over; and what it does not list is left out: small models make it up."""
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    schema |= function.get("parameters") or {}
    if not any(key in schema for key in _COMBINING):
        schema["additionalProperties"] = False
    if not _is_strict(function):
        schema["x-guidance"] = {"lenient": True}
    return schema

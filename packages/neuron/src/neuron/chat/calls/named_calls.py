"""Calls as a name and then their arguments in JSON, with marks of the format's own between them.

`[TOOL_CALLS]name[ARGS]{…}`, which older templates write as `[TOOL_CALLS]` and a list of objects,
and sections of calls that each have marks around name and arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from neuron.chat.calls.json_calls import JsonCalls, JsonFormat
from neuron.chat.calls.machine import CallMachine, Steps

__all__ = ["BracketCalls", "SectionCalls", "SectionFormat"]

_BRACKETS = JsonFormat(opens=("[TOOL_CALLS]",))


class BracketCalls(JsonCalls):
    """Both ways to go on after `[TOOL_CALLS]`."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        super().__init__(_BRACKETS, (), new_id)

    def _block(self, mark: str) -> Steps[bool]:
        if (yield from self._peek()) in ("[", "{"):
            return (yield from super()._block(mark))
        name = yield from self._word()
        if not name:
            return False
        after = yield from self._next_of("[CALL_ID]", "[ARGS]")
        if after == "[CALL_ID]":  # an id that the model made up; ours are unique
            yield from self._word()
            yield from self._next_of("[ARGS]")
        if (yield from self._peek()) != "{":
            return False
        self._open(name)
        return (yield from self._arguments())


class SectionFormat(msgspec.Struct, frozen=True):
    """`arguments` is the mark between name and arguments. In the older of the two ways to write a
    call, a type stands before it, and behind it the name and a fenced block of JSON.
    `is_numbered`: the name is written as `functions.name:0`."""

    section: str
    section_end: str
    call: str
    arguments: str
    call_end: str
    is_numbered: bool = False


# What some templates put around the name, and OpenAI's API does not.
_DECORATED = re.compile(r"(?:functions\.)?(?P<name>.+?)(?::\d+)?", re.DOTALL)


class SectionCalls(CallMachine):
    def __init__(self, form: SectionFormat, new_id: Callable[[], str]) -> None:
        self.form = form
        super().__init__(
            (form.section, form.call), new_id, closes=(form.call_end, form.section_end)
        )

    def _block(self, mark: str) -> Steps[bool]:
        form = self.form
        if mark == form.section and not (yield from self._next_of(form.call)):
            return False
        while (yield from self._call()):
            after = yield from self._closing(form.call_end, form.section_end)
            if after == form.call_end:
                after = yield from self._next_of(form.call, form.section_end)
            if after != form.call:
                return after == form.section_end
            self._hold(after)
        return False

    def _call(self) -> Steps[bool]:
        """Whether it was one, whole or not."""
        name = yield from self._word()
        if not name or not (yield from self._next_of(self.form.arguments)):
            return False
        is_fenced = False
        if (yield from self._peek()) != "{":
            name = yield from self._word()
            is_fenced = bool(name) and (yield from self._next_of("```")) != ""
            yield from self._next_of("json")
            if not name or (yield from self._peek()) != "{":
                return False
        met = _DECORATED.fullmatch(name)
        self._open(met["name"] if met else name)
        yield from self._arguments(also=("```",) if is_fenced else ())
        if is_fenced:
            yield from self._closing("```")
        return True

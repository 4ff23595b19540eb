"""Calls as a name and tagged values in plain text, whose types only the tool's schema tells.

`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`,
`<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`, and
`<invoke name="name"><parameter name="key">value</parameter></invoke>`.

A value that can only be a string is passed on as it comes; any other when it is whole. Nothing in
these formats is quoted, so a string may hold its own closing tag: that one ends the value only if
what follows belongs to the format too. It may hold the end of a call, if its closing tag comes
before another key; else it was never closed, and the end of the call is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from neuron.chat.calls.argument import argument, is_text, may_hold_end, schemas_of
from neuron.chat.calls.json_text import escaped
from neuron.chat.calls.machine import CallMachine, Steps

__all__ = ["KeyedCalls", "KeyedFormat"]

_MAX_KEY = 256


class KeyedFormat(msgspec.Struct, frozen=True):
    """The tags around each part; "" where the format has none. `is_padded`: a newline after the
    opening and before the closing tag of a value is not the value's. `is_grouped`: the calls of an
    answer are written in one block."""

    block: str
    block_end: str
    name: str
    name_end: str
    key: str
    key_end: str
    value: str
    value_end: str
    call_end: str
    is_padded: bool = False
    is_grouped: bool = False


class KeyedCalls(CallMachine):
    """`tools` are the offered tools, as in the request."""

    def __init__(
        self,
        form: KeyedFormat,
        tools: Sequence[Mapping[str, Any]],
        new_id: Callable[[], str],
    ) -> None:
        self.form = form
        self._schemas = schemas_of(tools)
        self._call_ends = tuple(filter(None, (form.call_end, form.block_end)))
        self._followers = (form.key, *self._call_ends)
        self._is_over = re.compile("|".join(map(re.escape, self._call_ends))).search
        padding = "\n" if form.is_padded else ""
        self._value_ends = [
            end for mark in (form.value_end, *self._call_ends) for end in {padding + mark, mark}
        ]
        super().__init__(filter(None, (form.block, form.name)), new_id, closes=self._call_ends)

    def _block(self, mark: str) -> Steps[bool]:
        form = self.form
        is_in_block = mark == form.block
        if is_in_block and form.name and not (yield from self._next_of(form.name)):
            return False
        while (yield from self._call(is_in_block)):
            if not form.call_end:
                return True
            after = yield from self._next_of(*filter(None, (form.block_end, form.name)))
            if after in ("", form.block_end):
                return after != "" or not is_in_block
            self._hold(after)
        return False

    def _call(self, is_in_block: bool) -> Steps[bool]:
        """From the name on. Whether it was whole. Models forget the block's own mark now and then;
        then only the name of an offered tool makes it a call."""
        form = self.form
        name = yield from self._word()
        if not name or (form.name_end and not (yield from self._next_of(form.name_end))):
            return False
        if not is_in_block and name not in self._schemas:
            return False
        after = yield from self._next_of(*self._followers)
        if not after:
            return False
        self._open(name)
        self._argue("{")
        is_first = True
        while after == form.key:
            key = yield from self._until(form.key_end, _MAX_KEY)
            if key is None or (form.value and not (yield from self._next_of(form.value))):
                return False
            key = key.strip()
            self._argue(("" if is_first else ", ") + f'"{escaped(key)}": ')
            is_first = False
            if not (yield from self._value(name, key)):
                return False
            after = yield from self._next_of(*self._followers)
        if not after and self._is_ended and self._may_follow(self._pending):
            return False  # cut short: what is missing may have been an argument
        self._argue("}")
        return after == form.call_end

    def _value(self, name: str, key: str) -> Steps[bool]:
        schemas = self._schemas.get(name)
        kinds = schemas.kinds(key) if schemas is not None else frozenset()
        if is_text(kinds):
            self._argue('"')
            is_whole = yield from self._text_value(lambda text: self._argue(escaped(text)), True)
            if is_whole:
                self._argue('"')
            return is_whole
        parts: list[str] = []
        is_whole = yield from self._text_value(parts.append, may_hold_end(kinds))
        text = "".join(parts)
        self._argue(argument(text, kinds) if is_whole else f'"{escaped(text)}')
        return is_whole

    def _text_value(self, sink: Callable[[str], None], may_hold_end: bool) -> Steps[bool]:
        """The value's text up to its closing tag, which is read too; False if it is cut short, or
        ends with the call."""
        end = self.form.value_end
        if self.form.is_padded:
            while not self._pending and (yield from self._more()):
                pass
            if self._pending.startswith("\n"):
                self._take(1)
        start = 0  # where the closing tag is looked for: before it stands one that closed nothing
        while True:
            at = self._pending.find(end, start)
            closed = at if at >= 0 else len(self._pending)
            over = self._is_over(self._pending, 0, closed)
            if over is not None:
                has_key = self._pending.find(self.form.key, over.end(), closed) >= 0
                if has_key or (at < 0 and self._is_ended):
                    sink(self._take(over.start()).removesuffix("\n" if self.form.is_padded else ""))
                    return False
            if at < 0:
                if over is None:
                    kept = self._overlap(*self._value_ends)
                    sink(self._take(max(start, len(self._pending) - kept)))
                    start = 0
            else:
                closes = self._is_closing(at + len(end)) if may_hold_end else True
                if closes:
                    is_padding = self.form.is_padded and self._pending[:at].endswith("\n")
                    sink(self._take(at)[: -1 if is_padding else None])
                    self._take(len(end))
                    return True
                if closes is not None:
                    start = at + len(end)
                    continue
            if not (yield from self._more()):
                self._take(len(self._pending))  # the beginning of a closing tag, if anything
                return False

    def _is_closing(self, at: int) -> bool | None:
        """Whether the format goes on behind a closing tag that ends at `at`; None if that is not
        certain yet."""
        rest = self._pending[at:].lstrip()
        if any(rest.startswith(follower) for follower in self._followers):
            return True
        if self._may_follow(rest):
            return True if self._is_ended else None
        return False

    def _may_follow(self, text: str) -> bool:
        text = text.lstrip()
        return any(follower.startswith(text) for follower in self._followers)

"""Calls as JSON objects: a name and arguments, one object or a list of them, between marks.

`<tool_call>{"name": …, "arguments": {…}}</tool_call>` (the Hermes format), the same as a list, and
an object after `<|python_tag|>` or with no mark at all. Quotes are respected, so that an argument
may hold the closing mark itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from neuron.chat.calls.json_text import is_object
from neuron.chat.calls.machine import CallMachine, Steps

__all__ = ["JsonCalls", "JsonFormat"]

_ARGUMENT_KEYS = ("arguments", "parameters")


class JsonFormat(msgspec.Struct, frozen=True):
    """`separator` is what stands between objects outside a list. `is_bare`: an answer may begin
    with a call that has no mark; then only the name of an offered tool makes an object a call."""

    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()
    name_keys: tuple[str, ...] = ("name",)
    separator: str = ""
    is_bare: bool = False
    hidden: tuple[str, ...] = ()


class JsonCalls(CallMachine):
    """`names` are the offered tools'; empty if any name is to count."""

    def __init__(self, form: JsonFormat, names: Collection[str], new_id: Callable[[], str]) -> None:
        self.form = form
        self._names = frozenset(names) if form.is_bare else frozenset()
        self._has_arguments = False
        super().__init__(
            form.opens, new_id, closes=form.closes, hidden=form.hidden, has_bare=form.is_bare
        )

    def _block(self, mark: str) -> Steps[bool]:
        calls = self._calls
        yield from self._calls_of_block()
        if self._calls == calls:
            return False
        self._give_back()
        return (yield from self._closing(*self.form.closes)) != ""

    def _calls_of_block(self) -> Steps[None]:
        """One object, several, or a list of them; whatever is no call is left held."""
        is_list = (yield from self._next_of("[")) != ""
        while (yield from self._call("}]" if is_list else "}")):
            if is_list:
                separator = yield from self._next_of(",", "]")
                if separator != ",":
                    return
            else:
                separator = ""
                if self.form.separator:
                    separator = yield from self._next_of(self.form.separator)
                if not separator and (yield from self._peek()) != "{":
                    return
            self._hold(rest=separator)

    def _call(self, around: str) -> Steps[bool]:
        """One object. Strict about its keys, which are needed; whether it was a whole call.
        `around`: the closing brackets behind its arguments."""
        self._has_arguments = False
        name = ""
        if not (yield from self._next_of("{")):
            return False
        while True:
            if not (yield from self._next_of('"')):
                return False
            key = yield from self._string()
            if key is None or not (yield from self._next_of(":")):
                return False
            if key in self.form.name_keys and not name:
                name = (yield from self._name()) or ""
                if not name:
                    return False
                if self._has_arguments:
                    self._open(name)
            elif key in _ARGUMENT_KEYS and not self._has_arguments:
                if not (yield from self._arguments_value(name, around)):
                    return False
            elif not (yield from self._any_value()):
                return False
            if name and self._has_arguments:
                self._hold()  # should the rest be broken, the call stands
            after = yield from self._next_of(",", "}")
            if after == "}":
                break
            if not after:
                return False
        if not name:
            return False
        if not self._has_arguments:
            self._accept("{}", name)
        self._held = None
        return True

    def _name(self) -> Steps[str | None]:
        if not (yield from self._next_of('"')):
            return None
        name = yield from self._string()
        return name if not self._names or name in self._names else None

    def _arguments_value(self, name: str, around: str) -> Steps[bool]:
        first = yield from self._peek()
        if first == "{":
            self._has_arguments = True
            if name:
                self._open(name)
            return (yield from self._arguments(around))
        if first == '"':
            # Some models write the arguments as OpenAI's API does: an object inside a string.
            yield from self._next_of('"')
            text = yield from self._string()
            if text is None or not is_object(text):
                return False
            self._accept(text, name)
            return True
        if (yield from self._scalar()) != "null":
            return False
        self._accept("{}", name)
        return True

    def _accept(self, arguments: str, name: str) -> None:
        """The arguments are known as a whole."""
        self._has_arguments = True
        if name:
            self._open(name)
        self._argue(arguments)

    def _any_value(self) -> Steps[bool]:
        first = yield from self._peek()
        if first == '"':
            yield from self._next_of('"')
            return (yield from self._string()) is not None
        if first in ("{", "["):
            return (yield from self._container(_drop))
        return (yield from self._scalar()) != ""


def _drop(text: str) -> None: ...

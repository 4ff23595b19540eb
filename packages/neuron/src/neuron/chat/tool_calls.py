"""Find tool calls in the text of an answer, as it comes, in the format the template taught.

A format is a ToolCallParser: text in, pieces out, whatever the chunks' boundaries. To add one,
write it and list in `_FORMATS` the mark by which a template that uses it is known.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Protocol

from neuron.chat.hermes import HermesParser
from neuron.chat.pieces import CallArguments, CallStarted, Text

__all__ = ["ToolCallParser", "new_call_id", "parser_for"]


class ToolCallParser(Protocol):
    def feed(self, text: str) -> list[Text | CallStarted | CallArguments]:
        """What `text` decides. A call's name comes before its arguments; text that is no call
        after all is given back as Text."""
        ...

    def finish(self) -> list[Text | CallStarted | CallArguments]:
        """What was still undecided when the answer ended."""
        ...


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


_FORMATS: dict[str, Callable[[Callable[[], str]], ToolCallParser]] = {
    "<tool_call>": HermesParser,
}


def parser_for(template: str, new_id: Callable[[], str] = new_call_id) -> ToolCallParser | None:
    """A parser for the format that the template's text speaks of; None if it speaks of none."""
    for mark, parser in _FORMATS.items():
        if mark in template:
            return parser(new_id)
    return None

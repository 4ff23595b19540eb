"""Calls as messages addressed to a function: `<|start|>assistant<|channel|>commentary
to=functions.name<|message|>{…}`.

The worker tells the header apart by token id and sends it as a marker; what a message says comes as
content. So text can never be taken for a header here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from neuron.chat.calls.machine import CallEvent, CallMachine, Steps

__all__ = ["AddressedCalls"]

_RECIPIENT = re.compile(r"\bto=functions\.([^\s<]+)")


class AddressedCalls(CallMachine):
    def __init__(self, new_id: Callable[[], str]) -> None:
        self._name = ""
        super().__init__((), new_id)

    def mark(self, header: str) -> tuple[list[CallEvent], bool]:
        """A header, or the end of a message: the message before it is over."""
        self._end()
        met = _RECIPIENT.search(header)
        self._name = met[1] if met else ""
        self._is_ended = False
        self._steps = self._run()
        next(self._steps)
        return self._taken(), bool(self._name)

    def _run(self) -> Steps[None]:
        if self._name:
            self._is_between = False
            yield
            yield from self._attempt("")
        yield from super()._run()

    def _block(self, mark: str) -> Steps[bool]:
        if (yield from self._peek()) != "{":
            return False
        self._open(self._name)
        return (yield from self._arguments())

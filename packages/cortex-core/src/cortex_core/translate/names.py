"""What a dialect's clients call the parameters of the chat that was made of their request."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from cortex_core.errors import CortexError

__all__ = ["Names"]

_INDEX = re.compile(r"\[\d+\]")
_FIRST = re.compile(r"(\w+)(\[\d+\])")


class Names:
    """`names`: the client's by the chat's, paths without indices. One stands for all that is below
    it, too, unless that has its own; an empty one, for what the client has not said. What the chat
    has a list of for each of the client's keeps its index; messages are made anew, and have none.
    `places`: by the chat's, e.g. `tools[1]`, those of the client's that are others.
    """

    def __init__(self, names: Mapping[str, str] = {}, places: Mapping[str, str] = {}) -> None:
        self._names = names
        self._places = places

    def of(self, param: str) -> str:
        parts = _INDEX.sub("", param).split(".")
        if parts[0] == "messages":
            return self._names.get("messages", "messages")
        for size in range(len(parts), 0, -1):
            name = self._names.get(".".join(parts[:size]))
            if name is not None:
                return self._indexed(".".join([name, *parts[size:]]), param) if name else ""
        return param

    def told(self, error: CortexError) -> CortexError:
        """The same error, by the client's name for its parameter, also where its message begins
        with that."""
        fault = error.fault
        name = self.of(fault.param) if fault.param else None
        if not name or name == fault.param:
            return error
        message = fault.message
        if message.startswith(f"{fault.param}:"):
            message = name + message.removeprefix(fault.param or "")
        return CortexError.from_fault(msgspec.structs.replace(fault, param=name, message=message))

    def _indexed(self, name: str, param: str) -> str:
        first = _FIRST.match(param)
        if first is None or not (name + ".").startswith(first[1] + "."):
            return name
        return self._places.get(first[0], first[0]) + name[len(first[1]) :]

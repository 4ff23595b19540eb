"""Who asks, and how urgently: what decides which waiting request goes first.

Both come from headers, so that a body stays what the client's API defines it to be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from cortex_core.errors import InvalidRequest
from cortex_core.wire import ipc

__all__ = ["CALLER", "NOBODY", "PRIORITY", "Precedence", "precedence_of"]

PRIORITY = "x-cortex-priority"
CALLER = "x-cortex-caller"

_PRIORITIES: dict[str, ipc.Priority] = {"interactive": "interactive", "batch": "batch"}
_SANE_CALLER = re.compile(r"[A-Za-z0-9._:%@/+=-]{1,128}")


class Precedence(msgspec.Struct, frozen=True):
    """`caller`: whose turn this takes; requests of one caller wait for each other first."""

    caller: str = ""
    priority: ipc.Priority = "interactive"


NOBODY = Precedence()
"""Nobody in particular, who does not want to wait."""


def precedence_of(headers: Mapping[str, str], address: str) -> Precedence:
    """From a request's headers (case-insensitive) and its client's address.

    A gateway names its client in `x-cortex-caller`; without it the caller is who connected. Raises
    InvalidRequest that names the header.
    """
    given = headers.get(PRIORITY, "interactive")
    priority = _PRIORITIES.get(given.strip().lower())
    if priority is None:
        raise InvalidRequest(
            f"{PRIORITY}: expected interactive or batch, got {given[:40]!r}", param=PRIORITY
        )
    caller = headers.get(CALLER)
    if caller is None:
        caller = address
    elif not _SANE_CALLER.fullmatch(caller):
        raise InvalidRequest(
            f"{CALLER}: expected 1 to 128 letters, digits or ._:%@/+=-, got {caller[:40]!r}",
            param=CALLER,
        )
    return Precedence(caller, priority)

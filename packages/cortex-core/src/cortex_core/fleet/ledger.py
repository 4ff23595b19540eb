"""What is known of models' costs: memory by place, seconds to load, and how much they are asked
for. Pure; `now` is in monotonic seconds.

Memory is estimated by a node from the file's header, then replaced by what was measured after a
load, which is remembered beyond the model's stay and, through `export` and `restore`, beyond the
gateway's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.discovery import NodeState

__all__ = ["Ledger", "LedgerRow", "Need", "Origin"]

Origin = Literal["estimated", "measured"]


class Need(msgspec.Struct, frozen=True):
    """Bytes on one device, and how that is known."""

    memory_bytes: int
    origin: Origin


class LedgerRow(msgspec.Struct, frozen=True):
    """What is worth keeping of one model on one device. `options`: those it was loaded with, as
    text; a model that is configured otherwise now has another need."""

    model: str
    node: str
    device: str
    options: str
    memory_bytes: int
    load_s: float


class Ledger:
    """`configured` first; models that are not configured count as loaded without options."""

    def configured(self, entries: Iterable[ModelEntry]) -> None:
        """The catalogue, at start and after each change: what was learned, or estimated, of a
        model with other options is forgotten."""
        raise NotImplementedError

    # stimuli

    def observed(self, node: str, state: NodeState) -> None:
        """Learn from the models that are ready there. A new boot of the node makes its estimates
        void: its files and devices may have changed."""
        raise NotImplementedError

    def estimated(
        self, model: str, node: str, needs: dict[str, int], fault: Fault | None = None
    ) -> None:
        """What the node said: bytes by device, or why it cannot load the model."""
        raise NotImplementedError

    def asked(self, model: str, now: float) -> None:
        """Somebody wants the model."""
        raise NotImplementedError

    def forget(self, node: str) -> None:
        """The node is no longer configured."""
        raise NotImplementedError

    # questions

    def is_estimated(self, model: str, node: str) -> bool:
        """Whether the node, in its present boot, has been asked and has answered."""
        raise NotImplementedError

    def fault(self, model: str, node: str) -> Fault | None:
        """Why the node said that it cannot load the model."""
        raise NotImplementedError

    def need(self, model: str, node: str, device: str) -> Need | None:
        """What the model takes there; None = nobody knows. Measured there, else estimated there,
        else the most that is known of the model on any device of the node."""
        raise NotImplementedError

    def needs(self, model: str, node: str, devices: Iterable[str]) -> dict[str, int]:
        """`need` in bytes, of the devices where it is known; what `placement.NodeView` wants."""
        raise NotImplementedError

    def reload_s(self, model: str, node: str) -> float:
        """Seconds that a load there takes: as measured there, else anywhere, else guessed from
        the memory it takes."""
        raise NotImplementedError

    def demand(self, model: str, now: float) -> float:
        """Requests per minute, of late: a request counts less the longer it is ago."""
        raise NotImplementedError

    # memory beyond the process

    def export(self) -> list[LedgerRow]:
        """All that has been measured, in a fixed order."""
        raise NotImplementedError

    def restore(self, rows: Iterable[LedgerRow]) -> None:
        """What an earlier process exported. Rows of other options than the configured are left
        out; what has been observed meanwhile is newer and stays."""
        raise NotImplementedError

"""Where a model is to be loaded, and what must leave for it. A pure function over values.

One device is chosen for one model. In this order: a node it is pinned on; room as it is; room
after evicting; a GPU; victims that are least missed; most free memory; the names.

What may be evicted: nothing that is pinned, of a higher class, busy, or on its way in or out; and
nothing that has only just been loaded, unless those who wait for the newcomer are clearly more
than those who asked for it (see `_CLEARLY_MORE`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from cortex_core.config.gateway import EvictionSection
from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.discovery import ModelPhase

__all__ = ["DeviceView", "NoPlacement", "NodeView", "Placement", "Resident", "Want", "place"]


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A model that has a place on a node (in whatever phase but `failed`).

    memory_bytes: measured, or what it will take while it is not there yet. is_pinned: by its entry
    there, or by an operator. priority: its class. busy: requests that run or wait there, ours and
    others'. demand: requests per minute. The times are seconds, monotonic."""

    model: str
    device: str
    memory_bytes: int
    phase: ModelPhase = "ready"
    is_pinned: bool = False
    priority: int = 0
    busy: int = 0
    loaded_at: float = 0.0
    last_used: float = 0.0
    reload_s: float = 0.0
    demand: float = 0.0


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes; None = unknown. cause: why it takes nothing (its worker has failed). Devices with one
    `pool` share one memory, as CPU devices share the host's; empty = it has its own."""

    id: str
    kind: Literal["cuda", "cpu"] = "cuda"
    total_bytes: int | None = None
    free_bytes: int | None = None
    cause: str = ""
    pool: str = ""


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node as a place for the wanted model.

    needs: bytes by device (`Ledger.needs`); a device that is not in it has not been asked about.
    fault: why the node says it cannot load it. absence: why the node is not reachable. is_placing:
    another placement is under way there. retry_at: not before then, since a load of it failed
    there with `failure`."""

    name: str
    devices: tuple[DeviceView, ...] = ()
    residents: tuple[Resident, ...] = ()
    needs: dict[str, int] = {}
    fault: Fault | None = None
    absence: str = ""
    is_draining: bool = False
    is_placing: bool = False
    retry_at: float | None = None
    failure: str = ""


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """`waiting`: how many requests wait for the model. `may_evict` False: only free room counts,
    as for a further replica. `avoid`: nodes that are not to be considered, by why."""

    entry: ModelEntry
    waiting: int = 1
    may_evict: bool = True
    avoid: dict[str, str] = {}


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Load it there, after these models have left, in this order. why: a line for each device and
    node that was considered, in the order of their names."""

    node: str
    device: str
    need_bytes: int
    evict: tuple[str, ...]
    why: tuple[str, ...]


class NoPlacement(msgspec.Struct, frozen=True, kw_only=True):
    """Nowhere, now.

    causes: node → why not. is_forever: no node could hold it even if it were empty.
    is_worth_waiting: something that is under way, or mere time, may change this; otherwise only an
    operator, or a node that comes back, can. retry_at: the moment from which mere time may have
    changed it. after_drain: where it would go if nobody used the models there (its victims are to
    be let finish)."""

    causes: dict[str, str]
    is_forever: bool
    is_worth_waiting: bool
    retry_at: float | None
    after_drain: Placement | None
    why: tuple[str, ...]


def place(
    want: Want, nodes: Iterable[NodeView], eviction: EvictionSection, now: float
) -> Placement | NoPlacement:
    """Decide. `now` is in monotonic seconds."""
    raise NotImplementedError

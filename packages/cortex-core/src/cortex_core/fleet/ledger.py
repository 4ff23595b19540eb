"""What is known of models' costs: memory by place, seconds to load, and how much they are asked
for. Pure; `now` is in monotonic seconds.

Memory is estimated by a node from the file's header, and measured after a load, which is remembered
beyond the model's stay and, through `export` and `restore`, beyond the gateway's.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp
from typing import Literal

import msgspec

from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.discovery import ModelState, NodeState

__all__ = ["DEMAND_WINDOW_MIN", "Ledger", "LedgerRow", "Need", "Origin"]

DEMAND_WINDOW_MIN = 5.0
"""What `demand` looks back on: a request so long ago counts for little more than a third."""

_NEWEST_SHARE = 0.5  # of the newest load's seconds in what is expected of the next
_READ_BYTES_PER_S = 500e6  # from a disk of no great speed, until a load was timed
_LEAST_LOAD_S = 1.0
# Clients may ask for names that no model has; what they make us remember is bounded.
_MOST_ASKED = 4096
_MOST_ESTIMATES = 4096

Origin = Literal["measured", "estimated", "elsewhere"]


class Need(msgspec.Struct, frozen=True):
    """Bytes on one device, and how that is known: measured or estimated there, or taken from
    another device of the node."""

    memory_bytes: int
    origin: Origin


class LedgerRow(msgspec.Struct, frozen=True):
    """What is worth keeping of one model on one device. `options`: those it was loaded with, as
    text; a model that is configured otherwise now has another need. `load_s` 0: not timed."""

    model: str
    node: str
    device: str
    options: str
    memory_bytes: int
    load_s: float


class _Estimate(msgspec.Struct):
    needs: dict[str, int]
    fault: Fault | None


class Ledger:
    """`configured` first; models that are not configured count as loaded without options."""

    def __init__(self) -> None:
        self._entries: dict[str, ModelEntry] = {}
        self._rows: dict[tuple[str, str, str], LedgerRow] = {}
        self._estimates: dict[tuple[str, str], _Estimate] = {}
        self._asked: dict[str, tuple[float, float]] = {}  # model → (requests, at)
        self._boots: dict[str, str] = {}
        self._ready: dict[str, dict[str, ModelState]] = {}

    def configured(self, entries: Iterable[ModelEntry]) -> None:
        """The catalogue, at start and after each change: what was learned, or estimated, of a
        model with other options is forgotten."""
        before = {model: self._options(model) for model, _ in self._estimates}
        self._entries = {entry.id: entry for entry in entries}
        changed = {model for model, options in before.items() if options != self._options(model)}
        self._estimates = {k: v for k, v in self._estimates.items() if k[0] not in changed}
        self._rows = {k: v for k, v in self._rows.items() if v.options == self._options(v.model)}
        # Who is loaded as configured may have become another.
        self._ready.clear()

    # stimuli

    def observed(self, node: str, state: NodeState) -> None:
        """Learn from the models that are ready there. A new boot of the node makes its estimates
        void: its files and devices may have changed."""
        if self._boots.get(node) != state.boot:
            self._boots[node] = state.boot
            self._estimates = {k: v for k, v in self._estimates.items() if k[1] != node}
            self._ready.pop(node, None)
        before = self._ready.get(node, {})
        ready = {model.id: model for model in state.models if model.phase == "ready"}
        self._ready[node] = ready
        for model in ready.values():
            if self.fault(model.id, node) is not None:
                del self._estimates[model.id, node]  # it is there in spite of it
            known = before.get(model.id)
            is_same = known is not None and _figures(known) == _figures(model)
            if not is_same and model.memory_bytes > 0 and self._is_as_configured(model):
                self._learn(node, model)

    def estimated(
        self, model: str, node: str, needs: dict[str, int], fault: Fault | None = None
    ) -> None:
        """What the node said: bytes by device, or why it cannot load the model."""
        self._estimates.pop((model, node), None)
        self._estimates[model, node] = _Estimate(dict(needs), fault)
        if len(self._estimates) > _MOST_ESTIMATES:
            del self._estimates[next(iter(self._estimates))]

    def asked(self, model: str, now: float) -> None:
        """Somebody wants the model."""
        count, at = self._asked.pop(model, (0.0, now))
        self._asked[model] = (count * _faded(now - at) + 1, now)
        if len(self._asked) > _MOST_ASKED:
            del self._asked[next(iter(self._asked))]

    def forget(self, node: str) -> None:
        """The node is no longer configured."""
        self._rows = {k: v for k, v in self._rows.items() if k[1] != node}
        self._estimates = {k: v for k, v in self._estimates.items() if k[1] != node}
        self._boots.pop(node, None)
        self._ready.pop(node, None)

    # questions

    def is_estimated(self, model: str, node: str) -> bool:
        """Whether the node, in its present boot, has been asked and has answered."""
        return (model, node) in self._estimates

    def fault(self, model: str, node: str) -> Fault | None:
        """Why the node said that it cannot load the model."""
        estimate = self._estimates.get((model, node))
        return estimate.fault if estimate else None

    def need(self, model: str, node: str, device: str) -> Need | None:
        """What the model takes there; None = nobody knows. Measured there or estimated there,
        whichever is more; else the most that is known of the model on any device of the node.

        A node lets nobody load what by its own estimate does not fit, however much less it took
        the last time: to count on that would have loads refused for which room could be made."""
        row = self._rows.get((model, node, device))
        estimate = self._estimates.get((model, node))
        needs = estimate.needs if estimate else {}
        if row is not None and row.memory_bytes >= needs.get(device, 0):
            return Need(row.memory_bytes, "measured")
        if device in needs:
            return Need(needs[device], "estimated")
        known = [row.memory_bytes for row in self._rows_of(model) if row.node == node]
        most = max([*known, *needs.values()], default=None)
        return None if most is None else Need(most, "elsewhere")

    def needs(self, model: str, node: str, devices: Iterable[str]) -> dict[str, int]:
        """`need` in bytes, of the devices where it is known; what `placement.NodeView` wants."""
        found = {device: self.need(model, node, device) for device in devices}
        return {device: need.memory_bytes for device, need in found.items() if need}

    def reload_s(self, model: str, node: str) -> float:
        """Seconds that a load there takes: as measured there, else anywhere, else guessed from
        the memory it takes."""
        rows = self._rows_of(model)
        timed = [row for row in rows if row.load_s > 0]
        here = [row.load_s for row in timed if row.node == node]
        if here or timed:
            return max(here or [row.load_s for row in timed])
        sizes = [row.memory_bytes for row in rows]
        for (name, _), estimate in self._estimates.items():
            if name == model:
                sizes += estimate.needs.values()
        return _LEAST_LOAD_S + max(sizes, default=0) / _READ_BYTES_PER_S

    def demand(self, model: str, now: float) -> float:
        """Requests per minute, of late: a request counts less the longer it is ago."""
        count, at = self._asked.get(model, (0.0, now))
        return count * _faded(now - at) / DEMAND_WINDOW_MIN

    # memory beyond the process

    def export(self) -> list[LedgerRow]:
        """All that has been measured, in a fixed order."""
        return [self._rows[key] for key in sorted(self._rows)]

    def restore(self, rows: Iterable[LedgerRow]) -> None:
        """What an earlier process exported. Rows of other options than the configured are left
        out; what has been observed meanwhile is newer and stays."""
        for row in rows:
            if row.options == self._options(row.model):
                self._rows.setdefault((row.model, row.node, row.device), row)

    # how

    def _learn(self, node: str, model: ModelState) -> None:
        key = (model.id, node, model.device)
        before = self._rows.get(key)
        load_s = model.load_s or 0.0
        if before is not None and before.load_s > 0:
            newest = load_s or before.load_s
            load_s = before.load_s + _NEWEST_SHARE * (newest - before.load_s)
        options = self._options(model.id)
        self._rows[key] = LedgerRow(*key, options, model.memory_bytes, load_s)

    def _rows_of(self, model: str) -> list[LedgerRow]:
        return [row for row in self._rows.values() if row.model == model]

    def _options(self, model: str) -> str:
        entry = self._entries.get(model)
        options = entry.estimate_options() if entry else {}
        return msgspec.json.encode(options, order="sorted").decode() if options else ""

    def _is_as_configured(self, model: ModelState) -> bool:
        """Not loaded by somebody who wanted another context, say, and so of another size."""
        entry = self._entries.get(model.id)
        if entry is None:
            return True
        pairs = (
            (entry.context, model.context),
            (entry.parallel, model.parallel),
            (entry.cells, model.cells),
            (entry.kv_type, model.kv_type),
        )
        return all(not wanted or wanted == has for wanted, has in pairs)


def _figures(model: ModelState) -> tuple[object, ...]:
    """What stays while it stays loaded."""
    size = (model.memory_bytes, model.context, model.parallel, model.cells, model.kv_type)
    return (model.device, model.load_s, *size)


def _faded(seconds: float) -> float:
    return exp(-max(0.0, seconds) / (60 * DEMAND_WINDOW_MIN))

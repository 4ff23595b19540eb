"""Where a model is to be loaded, and what must leave for it. A pure function over values.

One device is chosen for one model. In this order: a node it is pinned on; room as it is; room
after evicting; a GPU; victims that are least missed; most free memory; the names.

What may be evicted: nothing that is pinned, of a higher class, busy, or on its way in or out; and
nothing that has only just been loaded, unless clearly more wait for the newcomer than have asked
for it of late (`_is_clearly_more`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from cortex_core.config.gateway import EvictionSection
from cortex_core.config.models import ModelEntry
from cortex_core.errors import CortexError, Fault, RequestError
from cortex_core.fleet.discovery import ModelPhase
from cortex_core.fleet.ledger import DEMAND_WINDOW_MIN

__all__ = ["DeviceView", "NoPlacement", "NodeView", "Placement", "Resident", "Want", "place"]

_MIB = 2**20
_ARRIVING = ("loading", "recovering")
_LEAVING = ("draining", "unloading")


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
    another placement is under way there."""

    name: str
    devices: tuple[DeviceView, ...] = ()
    residents: tuple[Resident, ...] = ()
    needs: dict[str, int] = {}
    fault: Fault | None = None
    absence: str = ""
    is_draining: bool = False
    is_placing: bool = False


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
    judged = [_judge_node(want, node, eviction, now) for node in sorted(nodes, key=_name)]
    verdicts = [one for node in judged for one in node]
    why = [f"{one.node} {one.text}" for one in verdicts]
    plans = sorted((one.plan for one in verdicts if one.plan), key=_rank)
    if plans:
        why.append(f"chosen: {plans[0].node} {plans[0].device}, since {_advantage(plans)}")
        return plans[0].placement(why)
    drained = sorted((one.drained for one in verdicts if one.drained), key=_rank)
    return NoPlacement(
        causes={node[0].node: "; ".join(one.text for one in node) for node in judged},
        is_forever=all(one.is_forever for one in verdicts),
        is_worth_waiting=any(one.is_passing for one in verdicts),
        retry_at=min((one.retry_at for one in verdicts if one.retry_at is not None), default=None),
        after_drain=drained[0].placement(why) if drained else None,
        why=tuple(why),
    )


class _Plan(msgspec.Struct):
    """`rank`: the lower the better, in the order of `_ADVANTAGES`."""

    node: str
    device: str
    need_bytes: int
    victims: list[Resident]
    rank: tuple[Any, ...]

    def placement(self, why: list[str]) -> Placement:
        return Placement(
            node=self.node,
            device=self.device,
            need_bytes=self.need_bytes,
            evict=tuple(victim.model for victim in self.victims),
            why=tuple(why),
        )


_ADVANTAGES = (
    "the model is pinned there",
    "nothing has to leave there",
    "it is a GPU",
    "what is free there is known",
    "those who leave there are missed least",
    "it has the most free memory",
    "its name comes first",
    "its name comes first",
)


class _Verdict(msgspec.Struct, kw_only=True):
    """On one device, or on a node as a whole. `drained`: the plan once nobody uses the models
    there. `is_passing`: time, or something under way, may change it."""

    node: str
    text: str
    plan: _Plan | None = None
    drained: _Plan | None = None
    is_forever: bool = False
    is_passing: bool = False
    retry_at: float | None = None


def _judge_node(
    want: Want, node: NodeView, eviction: EvictionSection, now: float
) -> list[_Verdict]:
    """At least one verdict."""
    entry = want.entry
    least = entry.min_device_vram_mb * _MIB
    fitting = [device for device in node.devices if _is_large(device, least)]
    if node.fault is not None:
        # A fault of the model, such as a corrupt file, stays; a node that could not say does not.
        stays = isinstance(CortexError.from_fault(node.fault), RequestError)
        text = f"cannot load it: {node.fault.message}"
        return [_Verdict(node=node.name, text=text, is_forever=stays, is_passing=not stays)]
    if node.devices and len(fitting) < entry.min_devices:
        text = f"has {len(fitting)} of the {entry.min_devices} devices that it must have"
        if least:
            text += f", GPUs with {entry.min_device_vram_mb:,} MiB in all"
        return [_Verdict(node=node.name, text=text, is_forever=True)]
    devices = [_Site(want, node, device, eviction, now).judge() for device in fitting]
    if devices and all(device.is_forever for device in devices):
        return devices
    return [obstacle] if (obstacle := _obstacle(want, node)) else devices


def _obstacle(want: Want, node: NodeView) -> _Verdict | None:
    """What keeps this node as a whole from taking the model now."""

    def because(text: str, is_passing: bool = False) -> _Verdict:
        return _Verdict(node=node.name, text=text, is_passing=is_passing)

    if node.absence:
        return because(f"is unreachable: {node.absence}")
    if node.is_draining:
        return because("is draining")
    if node.name in want.avoid:
        return because(want.avoid[node.name])
    for resident in node.residents:
        if resident.model == want.entry.id:
            return because(f"has it already, {resident.phase}", resident.phase != "ready")
    if node.is_placing:
        return because("is being given another model", True)
    return None if node.devices else because("has told of no device")


class _Site:
    """One device as a place for the wanted model: the question, and what answers it."""

    def __init__(
        self, want: Want, node: NodeView, device: DeviceView, eviction: EvictionSection, now: float
    ) -> None:
        self._want = want
        self._node = node
        self._device = device
        self._eviction = eviction
        self._now = now
        residents = sorted(node.residents, key=lambda resident: resident.model)
        self._here = [resident for resident in residents if _shares(resident, device, node)]
        self._need = node.needs.get(device.id)
        self._free = _free(device, self._here)

    def judge(self) -> _Verdict:
        device, need, free = self._device, self._need, self._free
        if need is None:
            return self._verdict("nobody knows yet what it takes there", is_passing=True)
        if device.total_bytes is not None and need > device.total_bytes:
            text = f"needs {_mib(need)}, and there are {_mib(device.total_bytes)} in all"
            return self._verdict(text, is_forever=True)
        if device.cause:
            return self._verdict(f"out of order: {device.cause}")
        if free is None:
            text = f"needs {_mib(need)}; nobody knows what is free, so it fits"
            return self._verdict(text, plan=self._plan(need, []))
        sizes = f"needs {_mib(need)}, {_mib(free)} of {_mib(device.total_bytes)} are free"
        if device.free_bytes is None:
            sizes += " (by what the models there take; the driver does not say)"
        if need <= free:
            return self._verdict(f"{sizes}: it fits", plan=self._plan(need, []))
        if not self._want.may_evict:
            return self._verdict(f"{sizes}, and nothing is evicted for it")
        if moving := _moving(self._here, need - free):
            return self._verdict(f"{sizes}; {moving}", is_passing=True)
        return self._judge_eviction(need, need - free, sizes)

    def _judge_eviction(self, need: int, short: int, sizes: str) -> _Verdict:
        shields = [(r, _shield(r, self._want, self._eviction, self._now)) for r in self._here]
        idle = [resident for resident, shield in shields if shield is None]
        if victims := _victims(idle, short, self._eviction):
            evicted = ", ".join(_described(victim, self._now) for victim in victims)
            text = f"{sizes}: it fits after evicting {evicted}"
            return self._verdict(text, plan=self._plan(need, victims))
        busy = [resident for resident, shield in shields if shield and shield.kind == "busy"]
        young = [resident for resident, shield in shields if shield and shield.kind == "young"]
        leaving = [resident for resident in self._here if resident.phase in _LEAVING]
        after_drain = _victims(idle + busy, short, self._eviction)
        in_time = bool(_victims(idle + busy + young + leaving, short, self._eviction))
        ends = [shield.until for _, shield in shields if shield and shield.kind == "young"]
        stay = "; ".join(
            f"{resident.model} {shield.text}" for resident, shield in shields if shield
        )
        return self._verdict(
            f"{sizes}, and evicting is not enough" + (f" ({stay})" if stay else ""),
            drained=self._plan(need, after_drain) if after_drain else None,
            is_passing=in_time,
            retry_at=min(ends, default=None) if in_time else None,
        )

    def _verdict(self, text: str, **facts: Any) -> _Verdict:
        return _Verdict(node=self._node.name, text=f"{self._device.id}: {text}", **facts)

    def _plan(self, need: int, victims: list[Resident]) -> _Plan:
        missed = sorted(map(_missed(self._eviction), victims), reverse=True)
        name, device, free = self._node.name, self._device, self._free
        rank = (
            name not in self._want.entry.pinned_on,
            bool(victims),
            device.kind == "cpu",
            free is None,
            missed,
            -(free or 0),
            name,
            device.id,
        )
        return _Plan(name, device.id, need, victims, rank)


def _advantage(plans: list[_Plan]) -> str:
    """What the first has over the second."""
    if len(plans) == 1:
        return "it fits nowhere else"
    pairs = zip(_ADVANTAGES, plans[0].rank, plans[1].rank, strict=True)
    return next(advantage for advantage, mine, other in pairs if mine != other)


# room


def _is_large(device: DeviceView, least: int) -> bool:
    """Video memory is what is asked for: a CPU has none, however much memory its host has."""
    if least == 0:
        return True
    return device.kind != "cpu" and (device.total_bytes or 0) >= least


def _shares(resident: Resident, device: DeviceView, node: NodeView) -> bool:
    """Whether the resident's leaving gives the device memory."""
    if resident.device == device.id:
        return True
    pools = {other.id: other.pool for other in node.devices}
    return bool(device.pool) and pools.get(resident.device) == device.pool


def _free(device: DeviceView, here: list[Resident]) -> int | None:
    """Less what models on their way in will take: they may not have taken it yet. Where the driver
    would not say, what the models here leave of the whole."""
    if device.free_bytes is not None:
        taken = sum(r.memory_bytes for r in here if r.phase in _ARRIVING)
        return max(0, device.free_bytes - taken)
    if device.total_bytes is not None:
        return max(0, device.total_bytes - sum(r.memory_bytes for r in here))
    return None


def _moving(here: list[Resident], short: int) -> str:
    """Why it is too early to evict: models that are leaving give enough, or what models on their
    way in take is not known before they are there."""
    leaving = [r for r in here if r.phase in _LEAVING]
    if leaving and sum(r.memory_bytes for r in leaving) >= short:
        return f"{', '.join(r.model for r in leaving)} will have left enough"
    arriving = [r.model for r in here if r.phase in _ARRIVING]
    return f"{', '.join(arriving)} will first have to be there" if arriving else ""


# eviction


class _Shield(msgspec.Struct):
    """Why a resident may not be evicted. `until`: when a young one no longer is that."""

    text: str
    kind: Literal["always", "young", "busy"] = "always"
    until: float = 0.0


def _shield(
    resident: Resident, want: Want, eviction: EvictionSection, now: float
) -> _Shield | None:
    priority, most = resident.priority, want.entry.residency_priority
    if resident.is_pinned:
        return _Shield("is pinned")
    if priority > most:
        return _Shield(f"is of class {priority}, above {most}")
    if resident.phase != "ready":
        return _Shield(f"is {resident.phase}")
    until = resident.loaded_at + eviction.min_residency_s
    if until > now and not _is_clearly_more(want.waiting, resident.demand):
        return _Shield(f"is to stay {until - now:.0f} s more, having just come", "young", until)
    if resident.busy:
        return _Shield(f"is busy with {resident.busy}", "busy")
    return None


def _is_clearly_more(waiting: int, demand: float) -> bool:
    """At least two wait for the newcomer, and more than have asked for the resident of late.

    Otherwise two models that do not fit together would take turns with every request."""
    return waiting >= 2 and waiting > demand * DEMAND_WINDOW_MIN


def _missed(eviction: EvictionSection) -> Callable[[Resident], tuple[Any, ...]]:
    """How much a resident would be missed, to order by."""
    if eviction.strategy == "lru":
        return lambda r: (r.last_used, r.model)
    return lambda r: (r.priority, r.reload_s * r.demand, r.last_used, r.model)


def _victims(candidates: list[Resident], short: int, eviction: EvictionSection) -> list[Resident]:
    """Who leaves, the least missed first, so that `short` bytes come free; none if all of them
    would not do. The most missed is missed as little as can be, and nobody leaves in vain."""
    order = _missed(eviction)
    chosen: list[Resident] = []
    freed = 0
    for candidate in sorted(candidates, key=order):
        if freed >= short:
            break
        chosen.append(candidate)
        freed += candidate.memory_bytes
    if freed < short:
        return []
    for candidate in sorted(chosen, key=order, reverse=True):
        if freed - candidate.memory_bytes >= short:
            chosen.remove(candidate)
            freed -= candidate.memory_bytes
    return chosen


def _described(resident: Resident, now: float) -> str:
    idle_s = max(0.0, now - resident.last_used)
    return f"{resident.model} ({_mib(resident.memory_bytes)}, unused for {idle_s:.0f} s)"


def _mib(size: int | None) -> str:
    return "an unknown number" if size is None else f"{size / _MIB:,.0f} MiB"


def _name(node: NodeView) -> str:
    return node.name


def _rank(plan: _Plan) -> tuple[Any, ...]:
    return plan.rank

"""The life of one model on one node: where it stands, how it came there, what is remembered of it.

    absent ──► loading ──► ready ◄──► draining
      ▲           │          │ ▲          │
      │           ▼          ▼ │          ▼
      ├──────── failed   recovering   unloading ──► absent

The node is the authority for what is there; the gateway adds what it has ordered and not yet heard
of, and which model it is letting finish. Each step is a method named after both states; a step that
is not drawn, because a node was out of sight meanwhile, goes by way of absent. What is remembered
(failures, when it was last used) outlives every state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from cortex_core.errors import Fault
from cortex_core.fleet.breaker import Breaker
from cortex_core.fleet.discovery import ModelState
from cortex_core.fleet.topology import Replica

__all__ = ["Place", "PlaceState"]

PlaceState = Literal["absent", "loading", "ready", "draining", "unloading", "recovering", "failed"]

BACKOFF_FIRST_S = 5.0
BACKOFF_MOST_S = 300.0

_LONG_AGO = float("-inf")


class Place:
    """One model on one node. `tell(text, *values)` takes its story.

    busy: requests of ours there. incarnation: how often it has become ready. loaded_at: when; long
    ago for a model that was found there. retry_at: no load before then, since the last one failed
    with `fault`. drained_for: the model that waits for this one to be idle, when it gets no new
    requests any more.
    """

    __slots__ = (
        "backoff_s",
        "breaker",
        "busy",
        "drained_for",
        "fault",
        "incarnation",
        "loaded_at",
        "model",
        "node",
        "order",
        "replica",
        "retry_at",
        "said",
        "since",
        "state",
        "tell",
        "used_at",
    )

    def __init__(self, model: str, node: str, tell: Callable[..., None]) -> None:
        self.model = model
        self.node = node
        self.tell = tell
        self.state: PlaceState = "absent"
        self.since = _LONG_AGO
        self.said: ModelState | None = None  # by the node
        self.order: Literal["load", "unload"] | None = None  # of ours, under way
        self.drained_for: str | None = None
        self.busy = 0
        self.incarnation = 0
        self.loaded_at = _LONG_AGO
        self.used_at = _LONG_AGO
        self.backoff_s = 0.0
        self.retry_at: float | None = None
        self.fault: Fault | None = None
        self.breaker = Breaker()
        self.replica = Replica(model, node, "")

    # questions

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def is_coming(self) -> bool:
        """On its way to being ready."""
        return self.state in ("loading", "recovering")

    @property
    def has_memory(self) -> bool:
        """Something of it is, or will be, on a device."""
        return self.state not in ("absent", "failed")

    @property
    def users(self) -> int:
        """Requests there: ours, or all that the node told of, which may be other gateways'."""
        told = self.said.running + self.said.waiting if self.said is not None else 0
        return max(self.busy, told)

    @property
    def capacity(self) -> int:
        """How many requests it answers at once."""
        return max(self.said.parallel if self.said is not None else 0, 1)

    def cools_down(self, now: float) -> bool:
        return self.retry_at is not None and now < self.retry_at

    # stimuli

    def heard(self, said: ModelState | None, now: float) -> bool:
        """What the node says of it now; None = nothing. Returns whether its state has changed."""
        self.said = said
        if said is not None:
            if said.device != self.replica.device:
                self.replica = Replica(self.model, self.node, said.device)
            if said.fault is not None:
                self.fault = said.fault
            if said.running or said.waiting:
                self.used_at = now
        return self.settle(now)

    def ordered(self, order: Literal["load", "unload"], now: float) -> bool:
        self.order = order
        return self.settle(now)

    def loaded(self, said: ModelState, now: float) -> bool:
        """Our load has ended well."""
        self.order = None
        return self.heard(said, now)

    def failed(self, fault: Fault, now: float) -> bool:
        """Our load has failed. What the node last said is out of date."""
        self.order = None
        self.said = None
        self.fault = fault
        return self._move("failed", now)

    def withdrew(self, now: float) -> bool:
        """Our order was not carried out; the node's word holds again."""
        self.order = None
        return self.settle(now)

    def unloaded(self, now: float) -> bool:
        self.order = None
        return self.heard(None, now)

    def drain(self, newcomer: str | None, now: float) -> bool:
        """Give it no new requests, for the sake of `newcomer`; None = give it some again."""
        self.drained_for = newcomer
        return self.settle(now)

    def settle(self, now: float) -> bool:
        """Be what the node's word and our orders make of it. Returns whether that is news."""
        return self._move(self._target(), now)

    # transitions

    def _target(self) -> PlaceState:
        said = self.said.phase if self.said is not None else None
        if self.order == "load" and said not in ("ready", "recovering"):
            return "loading"
        if self.order == "unload" and said is not None:
            return "unloading"
        if said == "ready" and self.drained_for is not None:
            return "draining"
        return said or "absent"

    def _move(self, to: PlaceState, now: float) -> bool:
        if to == self.state:
            return False
        steps = self._STEPS
        if (self.state, to) not in steps:
            self._take("absent", now)
        self._take(to, now)
        return True

    def _take(self, to: PlaceState, now: float) -> None:
        step = self._STEPS[self.state, to]
        self.state, self.since = to, now
        step(self, now)

    def _absent_loading(self, now: float) -> None:
        self.tell("loading")

    def _absent_ready(self, now: float) -> None:
        self._begin_incarnation()
        self.loaded_at = _LONG_AGO
        self.tell("found ready on {}", self.replica.device)

    def _absent_draining(self, now: float) -> None:
        self.tell("found draining")

    def _absent_unloading(self, now: float) -> None:
        self.tell("found unloading")

    def _absent_recovering(self, now: float) -> None:
        self.tell("found recovering")

    def _absent_failed(self, now: float) -> None:
        self._back_off(now)

    def _loading_ready(self, now: float) -> None:
        self._begin_incarnation()
        self.loaded_at = self.used_at = now
        self.tell("ready on {}", self.replica.device)

    def _loading_failed(self, now: float) -> None:
        self._back_off(now)

    def _loading_recovering(self, now: float) -> None:
        self.tell("its worker died during the load")

    def _loading_absent(self, now: float) -> None:
        self.tell("the load was given up")

    def _ready_draining(self, now: float) -> None:
        why = f" for {self.drained_for}" if self.drained_for is not None else ""
        self.tell("gets no new requests{}", why)

    def _ready_unloading(self, now: float) -> None:
        self.tell("unloading")

    def _ready_recovering(self, now: float) -> None:
        self.tell("recovering: {}", self.fault.message if self.fault else "its worker restarts")

    def _ready_failed(self, now: float) -> None:
        self._back_off(now)

    def _ready_absent(self, now: float) -> None:
        self.tell("gone")

    def _draining_ready(self, now: float) -> None:
        self.tell("gets requests again")

    def _draining_unloading(self, now: float) -> None:
        self.tell("finished; unloading")

    def _draining_recovering(self, now: float) -> None:
        self._ready_recovering(now)

    def _draining_failed(self, now: float) -> None:
        self._back_off(now)

    def _draining_absent(self, now: float) -> None:
        self.drained_for = None
        self.tell("gone")

    def _unloading_ready(self, now: float) -> None:
        self.tell("stays: the unload was not carried out")

    def _unloading_draining(self, now: float) -> None:
        self.tell("stays until it is idle")

    def _unloading_absent(self, now: float) -> None:
        self.drained_for = None
        self.tell("unloaded")

    def _recovering_ready(self, now: float) -> None:
        self._begin_incarnation()
        self.tell("recovered")

    def _recovering_draining(self, now: float) -> None:
        self._recovering_ready(now)

    def _recovering_failed(self, now: float) -> None:
        self._back_off(now)

    def _recovering_absent(self, now: float) -> None:
        self.tell("gone while it recovered")

    def _failed_loading(self, now: float) -> None:
        self.tell("loading again")

    def _failed_absent(self, now: float) -> None:
        pass

    def _begin_incarnation(self) -> None:
        self.incarnation += 1
        self.breaker = Breaker()
        self.backoff_s, self.retry_at, self.fault = 0.0, None, None

    def _back_off(self, now: float) -> None:
        self.drained_for = None
        self.backoff_s = min(self.backoff_s * 2, BACKOFF_MOST_S) or BACKOFF_FIRST_S
        self.retry_at = now + self.backoff_s
        cause = self.fault.message if self.fault else "unknown cause"
        self.tell("failed, not tried again for {:.0f} s: {}", self.backoff_s, cause)

    _STEPS: ClassVar[dict[tuple[PlaceState, PlaceState], Callable[[Place, float], None]]] = {
        ("absent", "loading"): _absent_loading,
        ("absent", "ready"): _absent_ready,
        ("absent", "draining"): _absent_draining,
        ("absent", "unloading"): _absent_unloading,
        ("absent", "recovering"): _absent_recovering,
        ("absent", "failed"): _absent_failed,
        ("loading", "ready"): _loading_ready,
        ("loading", "failed"): _loading_failed,
        ("loading", "recovering"): _loading_recovering,
        ("loading", "absent"): _loading_absent,
        ("ready", "draining"): _ready_draining,
        ("ready", "unloading"): _ready_unloading,
        ("ready", "recovering"): _ready_recovering,
        ("ready", "failed"): _ready_failed,
        ("ready", "absent"): _ready_absent,
        ("draining", "ready"): _draining_ready,
        ("draining", "unloading"): _draining_unloading,
        ("draining", "recovering"): _draining_recovering,
        ("draining", "failed"): _draining_failed,
        ("draining", "absent"): _draining_absent,
        ("unloading", "ready"): _unloading_ready,
        ("unloading", "draining"): _unloading_draining,
        ("unloading", "absent"): _unloading_absent,
        ("recovering", "ready"): _recovering_ready,
        ("recovering", "draining"): _recovering_draining,
        ("recovering", "failed"): _recovering_failed,
        ("recovering", "absent"): _recovering_absent,
        ("failed", "loading"): _failed_loading,
        ("failed", "absent"): _failed_absent,
    }

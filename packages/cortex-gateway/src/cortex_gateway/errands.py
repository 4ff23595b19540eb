"""What operators have asked for: loads and unloads that the conductor brings about.

Each is an applicant like a request, with an id to ask for, and goes on when nobody asks any more.
The last ones that have ended are kept.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Literal

from cortex_core.envelopes.admin import OperatorOrder
from cortex_core.errors import CortexError, Fault, NotFound
from cortex_core.fleet.discovery import ModelState
from cortex_core.fleet.events import LoadWanted, UnloadWanted
from cortex_core.fleet.topology import Replica

if TYPE_CHECKING:
    from cortex_gateway.fleet import Fleet

__all__ = ["Errand", "Errands"]

MOST_KEPT = 256


class Errand:
    """One load or unload; `node` is where it is wanted, or has been brought about."""

    def __init__(
        self,
        fleet: Fleet,
        identity: str,
        kind: Literal["load", "unload"],
        model: str,
        node: str | None,
    ) -> None:
        self._fleet = fleet
        self.id = identity
        self._kind: Literal["load", "unload"] = kind
        self._model = model
        self._node = node
        self._result: ModelState | None = None
        self._fault: Fault | None = None
        self._over = asyncio.Event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    async def ended(self) -> None:
        """Until it has come about. Raises the error it failed with."""
        await self._over.wait()
        if self._fault is not None:
            raise CortexError.from_fault(self._fault)

    def report(self) -> OperatorOrder:
        phase, progress = "running", 0.0
        node = self._node
        if self._fault is not None:
            phase = "failed"
        elif self.is_over:
            phase, progress = "done", 1.0
        else:
            for location in self._fleet.topology.models().get(self._model, ()):
                if location.model.phase == "loading" and node in (None, location.node):
                    node, progress = location.node, location.model.progress or 0.0
        return OperatorOrder(
            self.id, self._kind, self._model, phase, progress, node, self._result, self._fault
        )

    # what the fleet says

    def sent(self, replica: Replica, load_s: float | None) -> None:
        self._node = replica.node
        for location in self._fleet.topology.models().get(replica.model, ()):
            if location.node == replica.node:
                self._result = location.model
        self._end()

    def refused(self, fault: Fault) -> None:
        self._fault = self._nodes_words() or fault
        self._end()

    def done(self) -> None:
        self._end()

    def _nodes_words(self) -> Fault | None:
        """Why every node concerned says that it cannot load the model, where they agree: unlike a
        client, an operator can do something about a file."""
        conductor = self._fleet.conductor
        nodes = conductor.topology.names if self._node is None else [self._node]
        faults = [conductor.ledger.fault(self._model, node) for node in nodes]
        codes = {None if fault is None else fault.code for fault in faults}
        return faults[0] if len(codes) == 1 else None

    def _end(self) -> None:
        self._over.set()
        self._fleet.leave(self.id, has_answer=True)


class Errands:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._numbers = itertools.count(1)
        self._errands: dict[str, Errand] = {}

    def load(self, model: str, node: str | None, options: dict[str, Any]) -> Errand:
        errand = self._begin("load", model, node)
        self._fleet.enter(errand.id, errand, LoadWanted(errand.id, model, node, options))
        return errand

    def unload(self, model: str, node: str | None) -> Errand:
        errand = self._begin("unload", model, node)
        self._fleet.enter(errand.id, errand, UnloadWanted(errand.id, model, node))
        return errand

    def find(self, identity: str) -> Errand:
        """Raises NotFound."""
        errand = self._errands.get(identity)
        if errand is None:
            raise NotFound(f"no operation {identity[:100]!r}; only the last {MOST_KEPT} are kept")
        return errand

    def _begin(self, kind: Literal["load", "unload"], model: str, node: str | None) -> Errand:
        identity = self._fleet.free_name(f"{kind}-{next(self._numbers)}")
        ended = [identity for identity, errand in self._errands.items() if errand.is_over]
        for old in ended[: len(self._errands) + 1 - MOST_KEPT]:
            del self._errands[old]
        errand = self._errands[identity] = Errand(self._fleet, identity, kind, model, node)
        return errand

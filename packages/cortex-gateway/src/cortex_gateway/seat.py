"""A request's place in the fleet, from its wish for a model to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from cortex_core.errors import CortexError, Fault
from cortex_core.fleet.events import AnswerBegan, Interest, RequestCame, RequestFailed
from cortex_core.fleet.topology import Replica

if TYPE_CHECKING:
    from cortex_gateway.fleet import Fleet

__all__ = ["Seat"]


class Seat:
    """Entering returns without suspending where a replica is ready, waits for one where that is to
    come, and raises the CortexError of a refusal. Whoever is cancelled meanwhile has left.

    `attempts`: how many replicas it has been sent to; `queued_s`: how long it has waited in all;
    `load_s`: the part of that during which its model was loading, None where it never was.
    `on_lost` is called, with the cause, when the replica's node is found to be gone while another
    has the model ready. `fault`: how the replica has failed it, where no CortexError says so that
    leaves through here.
    """

    __slots__ = (
        "_fleet",
        "_interest",
        "_is_sent",
        "_name",
        "_refusal",
        "_waiter",
        "attempts",
        "fault",
        "load_s",
        "on_lost",
        "queued_s",
        "replica",
    )

    replica: Replica
    _name: str  # in the fleet

    def __init__(self, fleet: Fleet, interest: Interest) -> None:
        self._fleet = fleet
        self._interest = interest
        self._is_sent = False
        self._refusal: Fault | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.attempts = 0
        self.queued_s = 0.0
        self.load_s: float | None = None
        self.on_lost: Callable[[str], None] | None = None
        self.fault: Fault | None = None

    async def __aenter__(self) -> Seat:
        fleet = self._fleet
        if not fleet.is_contacted:
            began = time.monotonic()
            await fleet.first_contact()
            self.queued_s = time.monotonic() - began
        interest = self._interest
        self._name = fleet.free_name(interest.request)
        if self._name != interest.request:
            interest = msgspec.structs.replace(interest, request=self._name)
        fleet.enter(self._name, self, RequestCame(interest))
        if not self._is_sent:
            try:
                await self._wait()
            except BaseException:
                fleet.leave(self._name, has_answer=False)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        fault = exc.fault if isinstance(exc, CortexError) else self.fault
        self._fleet.leave(self._name, has_answer=kind is None, fault=fault)

    async def failed(self, error: CortexError) -> Replica:
        """The replica failed with `error` before the first byte of an answer: the next one to ask,
        which is `self.replica` from then on. Raises the refusal when there is none."""
        self._is_sent = False
        self._fleet.apply(RequestFailed(self._name, error.fault))
        if not self._is_sent:
            await self._wait()
        return self.replica

    def answering(self) -> None:
        """The replica's answer has begun."""
        self._fleet.handle(AnswerBegan(self._name))

    @property
    def model(self) -> str | None:
        """What it has been sent to a replica of."""
        return self.replica.model if self._is_sent else None

    # what the fleet says

    def sent(self, replica: Replica, load_s: float | None) -> None:
        self.replica = replica
        self.load_s = load_s
        self.attempts += 1
        self._is_sent = True
        self._wake()

    def refused(self, fault: Fault) -> None:
        self._refusal = fault
        self._wake()

    def done(self) -> None:
        raise AssertionError("only an unload is ever done")

    def lost(self, node: str, cause: str) -> None:
        if self._is_sent and self.on_lost is not None and self.replica.node == node:
            self.on_lost(cause)

    async def _wait(self) -> None:
        """Until it is sent. Raises the refusal."""
        if self._refusal is None:
            began = time.monotonic()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self.queued_s += time.monotonic() - began
        if self._refusal is not None:
            raise CortexError.from_fault(self._refusal)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

"""What may end a request while it waits: its client leaves, its upstream stalls, the gateway stops.

`with Vigil(...)` works like `asyncio.timeout`: it cancels the task inside and turns the
cancellation into a typed exception. One timer serves all of it, so that a request that is over in
milliseconds pays for no task of its own, and a stream pays two assignments per chunk. The same
timer says when a streaming client has heard nothing for too long.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from cortex_core.errors import RequestTimeout, Stalled

__all__ = ["ClientGone", "Receive", "Vigil"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# A client that leaves sooner than this is noticed when this is over. (ASGI servers report a
# disconnect only to whoever waits in `receive`, and that takes a task.)
WATCH_AFTER_S = 0.03

# How long a streaming client may hear nothing before it gets a sign of life, and how often from
# then on. A neuron gives its own after 2 s, and the head that comes with it says more than the
# gateway knows: it goes first.
SILENCE_S = 2.2
BEAT_S = 1.0


class ClientGone(Exception):
    """The client closed its connection, or takes no bytes any more."""


class Vigil:
    """Owner: one request's task, from its first wait to the end of its answer.

    The owner says `expect` before each wait for the upstream, `sending` and `sent` around each for
    the client: a deadline that passes in between is the client's fault. It begins with reading the
    request, which ends with `has_read`; until then nobody else may wait in `receive`.
    `is_finishing`: the last bytes are being sent, and a disconnect is no longer news (servers
    report one after every answer).
    """

    __slots__ = (
        "_beat_at",
        "_deadline",
        "_due",
        "_is_open",
        "_is_reading",
        "_is_sending",
        "_loop",
        "_on_silence",
        "_reason",
        "_receive",
        "_task",
        "_timer",
        "_watcher",
        "is_finishing",
        "stalled_message",
    )

    def __init__(self, receive: Receive, expect_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._reason: Exception | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._deadline = self._loop.time() + expect_s
        self._on_silence: Callable[[], None] | None = None
        self._beat_at = math.inf
        self._is_open = False
        self._is_reading = True
        self._is_sending = False
        self.is_finishing = False
        self.stalled_message = "the upstream stalled"

    def __enter__(self) -> Vigil:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._is_open = True
        self._arm(min(self._deadline, self._loop.time() + WATCH_AFTER_S))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
        if self._reason is not None:
            self._task.uncancel()
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                raise self._reason from None

    def has_read(self) -> None:
        """The request is here in full; from now on its client's leaving is looked out for."""
        self._is_reading = False
        due = self._loop.time() + WATCH_AFTER_S
        if due < self._due:
            self._arm(due)

    def expect(self, within_s: float) -> None:
        """The wait that begins now ends within so many seconds, or the request does."""
        self._deadline = deadline = self._loop.time() + within_s
        if deadline < self._due:
            self._arm(deadline)

    def sending(self, within_s: float) -> None:
        """The wait that begins now is for the client."""
        self._is_sending = True
        self.expect(within_s)

    def sent(self, within_s: float) -> None:
        """The client has taken it, and the upstream's time begins anew."""
        self._is_sending = False
        now = self._loop.time()
        self._deadline = now + within_s
        if self._on_silence is not None:
            self._beat_at = now + SILENCE_S
        if self._deadline < self._due:
            self._arm(self._deadline)

    def break_silence(self, since_s: float, call: Callable[[], None]) -> None:
        """`call` whenever the client has heard nothing for long, the first time SILENCE_S after a
        moment that was `since_s` seconds ago."""
        self._on_silence = call
        self._beat_at = self._loop.time() - since_s + SILENCE_S
        if self._beat_at < self._due:
            self._arm(self._beat_at)

    def close(self) -> None:
        """Nothing ends the request from here on."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def end(self, reason: Exception) -> None:
        """Raise `reason` where the request waits. The first reason stands."""
        if self._is_open and self._reason is None:
            self._reason = reason
            self.close()
            self._task.cancel()

    @property
    def reason(self) -> Exception | None:
        """What has ended the request."""
        return self._reason

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = None if due == math.inf else self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        now = self._loop.time()
        if now >= self._deadline:
            self.end(self._overdue())
            return
        if self._watcher is None and not (self._is_reading or self.is_finishing):
            self._watcher = self._loop.create_task(self._await_disconnect())
        if now >= self._beat_at and self._on_silence is not None:
            self._beat_at = now + BEAT_S
            # A client that does not take what is being sent is slow, and not in silence.
            if not self._is_sending:
                self._on_silence()
        self._timer = None
        self._arm(min(self._deadline, self._beat_at))

    def _overdue(self) -> Exception:
        if self._is_reading:
            return RequestTimeout("the rest of the request did not come in time")
        if self._is_sending:
            return ClientGone("the client takes no bytes")
        return Stalled(self.stalled_message)

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._watcher = None  # `close` must not cancel the task that is running this line
        if not self.is_finishing:
            self.end(ClientGone("the client closed the connection"))

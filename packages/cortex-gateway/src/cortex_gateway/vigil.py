"""What may end a request while it waits: its client leaves, its upstream stalls, the gateway stops.

`with Vigil(...)` works like `asyncio.timeout`: it cancels the task inside and turns the
cancellation into a typed exception. One timer serves all of it, so that a request that is over in
milliseconds pays for no task of its own, and a stream pays two assignments per chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from cortex_core.errors import Stalled

__all__ = ["ClientGone", "Receive", "Vigil"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# A client that leaves sooner than this is noticed when this is over. (ASGI servers report a
# disconnect only to whoever waits in `receive`, and that takes a task.)
WATCH_AFTER_S = 0.03


class ClientGone(Exception):
    """The client closed its connection, or takes no bytes any more."""


class Vigil:
    """Owner: one request's task, between the end of its body and the end of its answer.

    The owner says `expect` before each wait, and sets `is_sending` while it waits for the client:
    a deadline that passes meanwhile is the client's fault. `is_finishing`: the last bytes are
    being sent, and a disconnect is no longer news (servers report one after every answer).
    """

    __slots__ = (
        "_deadline",
        "_loop",
        "_reason",
        "_receive",
        "_task",
        "_timer",
        "_watcher",
        "is_finishing",
        "is_sending",
        "stalled_message",
    )

    def __init__(self, receive: Receive, expect_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._reason: Exception | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = self._loop.time() + expect_s
        self.is_finishing = False
        self.is_sending = False
        self.stalled_message = "the upstream stalled"

    def __enter__(self) -> Vigil:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = self._loop.call_later(WATCH_AFTER_S, self._on_timer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
        if self._reason is not None:
            self._task.uncancel()
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                raise self._reason from None

    def expect(self, within_s: float) -> None:
        """The wait that begins now ends within so many seconds, or the request does."""
        self._deadline = self._loop.time() + within_s

    def close(self) -> None:
        """Nothing ends the request from here on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def end(self, reason: Exception) -> None:
        """Raise `reason` where the request waits. The first reason stands."""
        if self._timer is not None and self._reason is None:
            self._reason = reason
            self.close()
            self._task.cancel()

    def _on_timer(self) -> None:
        if self._watcher is None and not self.is_finishing:
            self._watcher = self._loop.create_task(self._await_disconnect())
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._on_timer)
        elif self.is_sending:
            self.end(ClientGone("the client takes no bytes"))
        else:
            self.end(Stalled(self.stalled_message))

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._watcher = None  # `close` must not cancel the task that is running this line
        if not self.is_finishing:
            self.end(ClientGone("the client closed the connection"))

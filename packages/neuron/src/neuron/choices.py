"""The requests in a worker that one client's request became, read as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from operator import itemgetter
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from cortex_core.outcome import Usage
from cortex_core.wire import ipc

__all__ = ["Choices", "Reader", "WorkerStream", "seeded"]


class WorkerStream(Protocol):
    """What is used of a request in a worker; leaving its context cancels it."""

    async def read(self) -> list[ipc.StepEvent]: ...

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Choices:
    """Of which each may be ahead of the others. `async with`, then `read()` until `is_ended`.

    Every `each` of them, one after the other, have the same prompt; it is counted once. `started`
    and `usage` are of those choices that came so far.
    """

    def __init__(self, each: int = 1) -> None:
        self._each = each
        self._streams: dict[int, WorkerStream] = {}
        self._opened = AsyncExitStack()
        self._reads: dict[asyncio.Task[list[ipc.StepEvent]], int] = {}
        self.started: ipc.Started | None = None
        self.usage = Usage()

    async def add(self, stream: WorkerStream) -> None:
        """The next choice. It is in flight; what becomes of it is from here on this one's."""
        self._streams[len(self._streams)] = await self._opened.enter_async_context(stream)

    @property
    def is_ended(self) -> bool:
        return not self._streams

    async def read(self) -> list[tuple[int, list[ipc.StepEvent]]]:
        """What came, by choice. Waits as long as the worker takes; raises the CortexError that one
        of the choices ended with, and with it the request."""
        if len(self._streams) == 1 and not self._reads:
            ((index, stream),) = self._streams.items()
            came = [(index, await stream.read())]
        else:
            came = await self._read_any()
        for index, events in came:
            self._note(index, events)
        return came

    async def _read_any(self) -> list[tuple[int, list[ipc.StepEvent]]]:
        busy = set(self._reads.values())
        for index, stream in self._streams.items():
            if index not in busy:
                self._reads[asyncio.create_task(stream.read())] = index
        done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
        came = [(self._reads[task], task.result()) for task in done]
        for task in done:  # if one of them has failed, what the others came to is seen at the exit
            del self._reads[task]
        return sorted(came, key=itemgetter(0))

    def _note(self, index: int, events: Iterable[ipc.StepEvent]) -> None:
        for event in events:
            if isinstance(event, ipc.Started):
                self._start(event)
            elif isinstance(event, ipc.Finished):
                del self._streams[index]
                self._count(event.usage, is_prompt_new=index % self._each == 0)

    def _start(self, event: ipc.Started) -> None:
        before = self.started
        if before is not None:
            event = msgspec.structs.replace(
                before, prompt=before.prompt + event.prompt, cached=before.cached + event.cached
            )
        self.started = event

    def _count(self, one: Usage, *, is_prompt_new: bool) -> None:
        every = self.usage
        self.usage = Usage(
            every.prompt + one.prompt * is_prompt_new,
            every.cached + one.cached * is_prompt_new,
            every.completion + one.completion,
            every.reasoning + one.reasoning,
        )

    async def __aenter__(self) -> Choices:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._reads:
            task.cancel()
        if self._reads:
            await asyncio.wait(self._reads)
            for task in self._reads:
                if not task.cancelled():
                    task.exception()  # seen: the request ends with the first one's
        await self._opened.aclose()


class Reader:
    """Choices on their way to a client. `async with`, then a subclass's `read()` until `is_ended`.
    `started` and `usage` are of those that came so far."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    @property
    def is_ended(self) -> bool:
        return self._choices.is_ended

    @property
    def started(self) -> ipc.Started | None:
        return self._choices.started

    @property
    def usage(self) -> Usage:
        return self._choices.usage

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._choices.__aexit__(kind, error, trace)


def seeded(sampling: ipc.Sampling, index: int) -> ipc.Sampling:
    """For choice `index` of the same prompt: with a seed, each choice has one of its own."""
    if sampling.seed is None or not index:
        return sampling
    return msgspec.structs.replace(sampling, seed=sampling.seed + index)

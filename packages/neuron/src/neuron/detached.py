"""Blocking work that nobody is held up by: not the event loop, and not the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["detached"]

T = TypeVar("T")


async def detached(work: Callable[[], T], name: str) -> T:
    """What `work` returns or raises, run on a daemon thread of its own. When the wait is cancelled
    the thread is left to end by itself; unlike a pool's, it is not waited for at exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:  # the loop has closed while we were at it
            return

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done

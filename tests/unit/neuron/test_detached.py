"""Blocking work on threads that nobody waits for at the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from neuron.detached import detached


async def test_what_the_work_returns_or_raises_is_the_awaiters():
    assert await detached(lambda: 42, "forty-two") == 42
    with pytest.raises(ZeroDivisionError):
        await detached(lambda: 1 // 0, "nothing")


async def test_the_loop_goes_on_meanwhile():
    go = threading.Event()
    waiting = asyncio.create_task(detached(lambda: go.wait(20), "waits"))
    await asyncio.sleep(0)
    assert not waiting.done()
    go.set()
    assert await waiting


def test_neither_a_cancelled_wait_nor_the_end_of_the_loop_waits_for_the_thread():
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(20)
        ended.set()

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await detached(work, "left")

    asyncio.run(leave())
    assert not ended.is_set()
    go.set()
    assert ended.wait(20)

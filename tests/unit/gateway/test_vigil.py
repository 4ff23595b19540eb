"""What ends a wait, and as what."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from cortex_core.errors import RequestTimeout, ShuttingDown, Stalled
from cortex_gateway import vigil as module
from cortex_gateway.admission import Admission
from cortex_gateway.vigil import ClientGone, Vigil


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_AFTER_S", 0.001)
    monkeypatch.setattr(module, "SILENCE_S", 0.02)
    monkeypatch.setattr(module, "BEAT_S", 0.01)


class Client:
    """Its `receive` waits until the client has left."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def wait(client: Client, expect_s: float = 5, *, is_sending: bool = False) -> None:
    with Vigil(client.receive, expect_s) as vigil:
        vigil.has_read()
        vigil.stalled_message = "in its own words"
        if is_sending:
            vigil.sending(expect_s)
        await asyncio.sleep(5)


async def test_a_deadline_is_a_stall() -> None:
    with pytest.raises(Stalled, match="in its own words"):
        await wait(Client(), 0.01)


async def test_a_deadline_while_sending_is_the_clients_fault() -> None:
    with pytest.raises(ClientGone):
        await wait(Client(), 0.01, is_sending=True)


async def test_a_request_that_does_not_end_is_the_clients_fault() -> None:
    with pytest.raises(RequestTimeout), Vigil(Client().receive, 0.01):
        await asyncio.sleep(5)


async def test_nobody_else_receives_while_the_request_is_being_read() -> None:
    client = Client()
    client.left.set()
    with Vigil(client.receive, 5) as vigil:
        await asyncio.sleep(0.01)  # its first look has come and gone, and ended nothing
        vigil.has_read()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(5)


async def test_a_renewed_deadline_does_not_pass() -> None:
    with Vigil(Client().receive, 0.2) as vigil:
        for _ in range(4):
            await asyncio.sleep(0.08)
            vigil.expect(0.2)


async def test_a_deadline_may_come_nearer() -> None:
    async def come_nearer() -> None:
        with Vigil(Client().receive, 600) as vigil:
            vigil.has_read()
            await asyncio.sleep(0.01)  # by now its timer is set for the far one
            vigil.expect(0.01)
            await asyncio.sleep(5)

    with pytest.raises(Stalled):
        await come_nearer()


async def test_a_wait_without_a_limit_still_ends_with_its_client() -> None:
    client = Client()
    asyncio.get_running_loop().call_later(0.01, client.left.set)
    with pytest.raises(ClientGone):
        await wait(client, math.inf)


async def test_silence_is_broken_again_and_again_until_something_is_sent() -> None:
    beats: asyncio.Queue[float] = asyncio.Queue()
    clock = asyncio.get_running_loop().time
    began = clock()
    with Vigil(Client().receive, 5) as vigil:
        vigil.has_read()
        vigil.break_silence(0.0, lambda: beats.put_nowait(clock()))
        vigil.expect(math.inf)
        first = await beats.get()
        assert first - began >= 0.02
        assert await beats.get() - first >= 0.01
        vigil.sent(5)
        sent = clock()
        assert await beats.get() - sent >= 0.02


async def test_a_client_that_is_slow_to_take_its_bytes_is_not_in_silence() -> None:
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    async def be_slow() -> None:
        with Vigil(Client().receive, 5) as vigil:
            vigil.has_read()
            vigil.break_silence(0.0, beat)
            vigil.sending(0.06)
            await asyncio.sleep(5)

    with pytest.raises(ClientGone):
        await be_slow()
    assert beats == 0


async def test_a_client_that_leaves_ends_the_wait() -> None:
    client = Client()
    asyncio.get_running_loop().call_later(0.01, client.left.set)
    with pytest.raises(ClientGone):
        await wait(client)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_disconnect_at_the_very_end_is_no_news() -> None:
    client = Client()
    with Vigil(client.receive, 5) as vigil:
        vigil.has_read()
        await asyncio.sleep(0.01)
        vigil.is_finishing = True
        client.left.set()
        await asyncio.sleep(0.01)


async def test_a_cancellation_from_outside_stays_one() -> None:
    task = asyncio.create_task(wait(Client()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_inside_passes_and_leaves_no_task_behind() -> None:
    before = len(asyncio.all_tasks())

    async def fail() -> None:
        with Vigil(Client().receive, 5) as vigil:
            vigil.has_read()
            await asyncio.sleep(0.01)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before


async def test_a_drain_waits_then_ends_who_is_left_and_admits_nobody() -> None:
    admission = Admission()
    ended: list[BaseException] = []

    async def request() -> None:
        with admission:
            try:
                with Vigil(Client().receive, 5) as vigil:
                    admission.watch(vigil)
                    await asyncio.sleep(5)
            except ShuttingDown as error:
                ended.append(error)

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    await admission.drain(0.02)
    await task
    assert len(ended) == 1
    with pytest.raises(ShuttingDown), admission:
        pass
    assert admission.active == 0


async def test_a_drain_of_nobody_is_immediate() -> None:
    await asyncio.wait_for(Admission().drain(60), 0.1)

"""A request's events between its worker and its reader."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from cortex_core.errors import ContextLengthExceeded, Fault, UpstreamFailed
from cortex_core.outcome import Usage
from cortex_core.wire import ipc
from neuron.streams import RequestStream, StreamTable

FINISHED = ipc.Finished(1, "stop", Usage(1, 0, 1, 0))
GONE = Fault("upstream_failed", "the worker was killed")


class Wire:
    """A table, what it sent to the worker, and how often it reported a change."""

    def __init__(self) -> None:
        self.sent: list[ipc.Command] = []
        self.changes = 0
        self.table = StreamTable(self.sent.append, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def open(self, prompt: str = "hi", model: str = "m") -> RequestStream:
        return self.table.open(ipc.Generate(0, model, prompt, ipc.Sampling()))


@pytest.fixture
def wire() -> Wire:
    return Wire()


def delta(text: str, channel: ipc.Channel = "content", request: int = 1) -> ipc.Delta:
    return ipc.Delta(request, text, channel)


async def test_opening_sends_the_request(wire: Wire):
    ask = ipc.Generate(0, "m", "hi", ipc.Sampling(temperature=0), 5, ("stop",), caller="a")
    stream = wire.table.open(ask)
    assert wire.sent == [replace(ask, request=stream.request)]


async def test_events_arrive_in_order(wire: Wire):
    async with wire.open() as stream:
        wire.table.dispatch(ipc.Step("m", [ipc.Started(1, 3, 2)], [delta("a")]))
        assert await stream.read() == [ipc.Started(1, 3, 2), delta("a")]
        wire.table.dispatch(ipc.Step("m", finished=[FINISHED]))
        assert await stream.read() == [FINISHED]


async def test_a_reader_that_waits_is_woken(wire: Wire):
    async with wire.open() as stream:
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        assert not reading.done()
        wire.table.dispatch(ipc.Step("m", deltas=[delta("a")]))
        assert await reading == [delta("a")]


async def test_deltas_that_piled_up_are_one_per_channel(wire: Wire):
    async with wire.open() as stream:
        for text in "ab":
            wire.table.dispatch(ipc.Step("m", deltas=[delta(text, "reasoning")]))
        wire.table.dispatch(ipc.Step("m", deltas=[delta("</think>", "marker")]))
        for text in "cd":
            wire.table.dispatch(ipc.Step("m", deltas=[delta(text)]))
        wire.table.dispatch(ipc.Step("m", finished=[FINISHED]))
        assert await stream.read() == [
            delta("ab", "reasoning"),
            delta("</think>", "marker"),
            delta("cd"),
            FINISHED,
        ]


async def test_what_came_before_a_failure_is_read_before_it_raises(wire: Wire):
    async with wire.open() as stream:
        fault = Fault("context_length_exceeded", "too long")
        wire.table.dispatch(ipc.Step("m", deltas=[delta("a")], failed=[ipc.Failed(1, fault)]))
        assert await stream.read() == [delta("a")]
        for _ in range(2):
            with pytest.raises(ContextLengthExceeded, match="too long"):
                await stream.read()


async def test_a_lost_worker_ends_every_stream(wire: Wire):
    async with wire.open() as one, wire.open() as two:
        reading = asyncio.create_task(two.read())
        await asyncio.sleep(0)
        wire.table.fail(GONE)
        for read in (one.read(), reading):
            with pytest.raises(UpstreamFailed, match="was killed"):
                await read


async def test_a_finished_stream_is_not_ended_again(wire: Wire):
    async with wire.open() as stream:
        wire.table.dispatch(ipc.Step("m", finished=[FINISHED]))
        wire.table.fail(GONE)
        assert await stream.read() == [FINISHED]


async def test_reading_on_after_the_end_is_a_mistake(wire: Wire):
    async with wire.open() as stream:
        wire.table.dispatch(ipc.Step("m", finished=[FINISHED]))
        await stream.read()
        with pytest.raises(RuntimeError):
            await stream.read()


async def test_leaving_early_cancels_in_the_worker(wire: Wire):
    async with wire.open() as stream:
        pass
    assert wire.sent[-1] == ipc.Cancel(stream.request)
    wire.table.dispatch(ipc.Step("m", deltas=[delta("late")]))  # goes nowhere


async def test_leaving_after_the_end_cancels_nothing(wire: Wire):
    async with wire.open() as stream:
        wire.table.dispatch(ipc.Step("m", finished=[FINISHED]))
        await stream.read()
    stream.close()
    assert len(wire.sent) == 1


async def test_a_cancelled_reader_leaves_the_stream_usable(wire: Wire):
    async with wire.open() as stream:
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        wire.table.dispatch(ipc.Step("m", deltas=[delta("a")]))
        assert await stream.read() == [delta("a")]


async def test_running_and_waiting_are_counted_per_model(wire: Wire):
    async with wire.open() as one, wire.open(), wire.open(model="other"):
        assert wire.table.load("m") == (0, 2)
        wire.table.dispatch(ipc.Step("m", [ipc.Started(one.request, 1, 0)]))
        assert wire.table.load("m") == (1, 1)
        assert wire.table.open_count == 3
        wire.table.dispatch(ipc.Step("m", finished=[FINISHED]))
        assert wire.table.load("m") == (0, 1)
        # Its answer is not handed over yet.
        assert wire.table.open_count == 3
    assert wire.table.open_count == 0


async def test_cancelling_a_model_tells_the_worker_and_the_readers(wire: Wire):
    async with wire.open() as mine, wire.open(model="other") as other:
        wire.table.cancel(GONE, "m")
        assert wire.sent[-1] == ipc.Cancel(mine.request)
        with pytest.raises(UpstreamFailed):
            await mine.read()
        assert not other.is_ended

"""A request's events between its worker and its reader."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from cortex_core.errors import (
    ContextLengthExceeded,
    Fault,
    NoCapacity,
    RequestTooLarge,
    UpstreamFailed,
)
from cortex_core.outcome import Usage
from cortex_core.wire import ipc
from neuron import streams
from neuron.streams import RequestStream, StreamTable

FINISHED = ipc.Finished(1, "stop", Usage(1, 0, 1, 0))
MOST_UNREAD = streams._MOST_UNREAD
GONE = Fault("upstream_failed", "the worker was killed")


class Wire:
    """A table, what it sent to the worker, and how often it reported a change."""

    def __init__(self) -> None:
        self.sent: list[ipc.Command] = []
        self.changes = 0
        self.answered: list[str] = []
        self.table = StreamTable(self.sent.append, self._changed, self._answered)

    def _changed(self) -> None:
        self.changes += 1

    def _answered(self, ask: ipc.Ask) -> None:
        assert isinstance(ask, ipc.Generate)
        assert isinstance(ask.prompt, str)
        self.answered.append(ask.prompt)

    def open(
        self, prompt: str = "hi", model: str = "m", *, is_suspect: bool = False
    ) -> RequestStream:
        ask = ipc.Generate(0, model, prompt, ipc.Sampling())
        return self.table.open(ask, is_suspect=is_suspect)

    def start(self, *streams: RequestStream) -> None:
        started = [ipc.Started(stream.request, 1, 0) for stream in streams]
        self.table.dispatch(ipc.Step("m", started))

    def finish(self, stream: RequestStream, reason: ipc.FinishReason = "stop") -> None:
        finished = ipc.Finished(stream.request, reason, Usage())
        self.table.dispatch(ipc.Step("m", finished=[finished]))

    def say(self, stream: RequestStream, count: int) -> None:
        """So many deltas, each in a step of its own."""
        for number in range(count):
            said = delta(f"{number} ", request=stream.request)
            self.table.dispatch(ipc.Step("m", deltas=[said]))

    @property
    def paces(self) -> list[ipc.Command]:
        """What the worker was told of who reads, in order."""
        return [sent for sent in self.sent if isinstance(sent, ipc.Pause | ipc.Resume)]

    @property
    def prompts(self) -> list[object]:
        """Of what was sent to be generated, in order."""
        return [sent.prompt for sent in self.sent if isinstance(sent, ipc.Generate)]

    def in_flight(self, model: str | None = None) -> list[object]:
        asks = self.table.in_flight(model)
        return [ask.prompt for ask in asks if isinstance(ask, ipc.Generate)]


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


# a reader that stops


async def test_a_request_whose_reader_stops_is_paused_once_and_resumed_when_it_reads(wire: Wire):
    async with wire.open() as stream:
        wire.start(stream)
        wire.say(stream, MOST_UNREAD - 2)
        assert wire.paces == []
        wire.say(stream, 20)  # what was on its way still comes
        assert wire.paces == [ipc.Pause(stream.request)]
        assert wire.table.load("m") == (1, 0)
        started, text = await stream.read()
        assert started == ipc.Started(stream.request, 1, 0)
        assert isinstance(text, ipc.Delta)
        assert text.text == "".join(
            f"{number} " for count in (MOST_UNREAD - 2, 20) for number in range(count)
        )
        assert wire.paces == [ipc.Pause(stream.request), ipc.Resume(stream.request)]
        wire.say(stream, MOST_UNREAD)
        assert wire.paces[2:] == [ipc.Pause(stream.request)]


async def test_a_reader_that_keeps_up_pauses_nothing(wire: Wire):
    async with wire.open() as stream:
        for _ in range(4):
            wire.say(stream, MOST_UNREAD - 1)
            await stream.read()
        assert wire.paces == []


async def test_who_has_stopped_holds_up_nobody_else(wire: Wire):
    async with wire.open() as stopped, wire.open() as other:
        wire.say(stopped, MOST_UNREAD)
        wire.say(other, 1)
        assert await other.read() == [delta("0 ", request=other.request)]
        assert wire.paces == [ipc.Pause(stopped.request)]


async def test_an_answer_that_has_ended_is_neither_paused_nor_resumed(wire: Wire):
    async with wire.open() as long, wire.open() as paused:
        wire.say(long, MOST_UNREAD - 1)
        wire.finish(long)
        wire.say(paused, MOST_UNREAD)
        wire.finish(paused)
        for stream in (long, paused):
            assert (await stream.read())[-1] == ipc.Finished(stream.request, "stop", Usage())
    assert wire.paces == [ipc.Pause(paused.request)]
    assert wire.sent[-1] == ipc.Pause(paused.request)


async def test_a_paused_request_whose_worker_is_lost_says_so_and_nothing_to_the_next_worker(
    wire: Wire,
):
    async with wire.open() as stream:
        wire.say(stream, MOST_UNREAD)
        wire.table.fail(GONE)
        assert len(await stream.read()) == 1
        with pytest.raises(UpstreamFailed):
            await stream.read()
    assert wire.sent[1:] == [ipc.Pause(stream.request)]


async def test_a_paused_request_that_is_left_is_cancelled(wire: Wire):
    async with wire.open("left") as stream:
        wire.say(stream, MOST_UNREAD)
    assert wire.sent[1:] == [ipc.Pause(stream.request), ipc.Cancel(stream.request)]
    wire.say(wire.open(), 2)
    assert "left" in wire.in_flight(), "until the worker has let it go"


async def test_what_is_paused_is_not_in_flight_once_the_worker_must_have_heard_of_it(wire: Wire):
    async with wire.open("stopped") as stopped, wire.open("runs") as runs:
        wire.start(stopped, runs)
        wire.say(stopped, MOST_UNREAD - 1)
        assert wire.paces == [ipc.Pause(stopped.request)]
        wire.say(runs, 1)
        assert wire.in_flight() == ["stopped", "runs"]
        wire.say(runs, 1)
        assert wire.in_flight() == ["runs"]
        await stopped.read()
        assert wire.in_flight() == ["stopped", "runs"]


# what the worker may be computing


async def test_what_has_started_is_in_flight_and_what_only_waits_is_not(wire: Wire):
    async with wire.open("runs") as runs, wire.open("waits"):
        wire.start(runs)
        wire.table.dispatch(ipc.Step("m", deltas=[delta("a", request=runs.request)]))
        assert wire.in_flight() == ["runs"]
        wire.finish(runs)
        assert wire.in_flight() == []


async def test_what_was_just_sent_is_in_flight_for_it_may_be_being_read(wire: Wire):
    async with wire.open("runs") as runs:
        wire.start(runs)
        async with wire.open("new"):
            assert wire.in_flight() == ["runs", "new"]


async def test_what_never_says_that_it_started_is_in_flight_until_it_ends(wire: Wire):
    ask = ipc.Embed(0, "m", ["text"])
    async with wire.table.open(ask) as stream:
        for _ in range(3):
            wire.table.dispatch(ipc.Step("m"))
        assert wire.table.in_flight() == [ask]
        wire.finish(stream)
        assert wire.table.in_flight() == []


async def test_a_request_whose_client_left_is_in_flight_until_the_worker_has_let_it_go(wire: Wire):
    async with wire.open("left") as stream:
        wire.start(stream)
    assert wire.in_flight() == ["left"]
    wire.finish(stream, "cancelled")
    assert wire.in_flight() == []


async def test_in_flight_can_be_asked_for_one_model(wire: Wire):
    async with wire.open("mine"), wire.open("theirs", model="other"):
        assert wire.in_flight("other") == ["theirs"]


async def test_nothing_is_in_flight_in_a_lost_worker(wire: Wire):
    async with wire.open("a"):
        async with wire.open("b"):
            pass
        wire.table.fail(GONE)
        assert wire.in_flight() == []


# suspects


async def test_suspects_go_to_the_worker_one_at_a_time(wire: Wire):
    first = wire.open("first", is_suspect=True)
    second = wire.open("second", is_suspect=True)
    wire.open("free")
    assert wire.prompts == ["first", "free"]
    assert wire.table.load("m") == (0, 3)
    assert "second" not in wire.in_flight()
    wire.start(first)
    wire.finish(first)
    assert wire.prompts == ["first", "free", "second"]
    assert wire.answered == ["first"]
    wire.finish(second, "cancelled")
    assert wire.answered == ["first"]


async def test_a_suspect_that_failed_is_not_cleared_but_lets_the_next_go(wire: Wire):
    first, _ = wire.open("first", is_suspect=True), wire.open("second", is_suspect=True)
    wire.table.dispatch(ipc.Step("m", failed=[ipc.Failed(first.request, GONE)]))
    assert wire.prompts == ["first", "second"]
    assert wire.answered == []


async def test_a_suspect_that_leaves_lets_the_next_go_when_the_worker_has_let_it_go(wire: Wire):
    async with wire.open("first", is_suspect=True) as first:
        wire.open("second", is_suspect=True)
    assert wire.prompts == ["first"]
    wire.finish(first, "cancelled")
    assert wire.prompts == ["first", "second"]


async def test_a_held_suspect_that_leaves_was_never_sent(wire: Wire):
    first = wire.open("first", is_suspect=True)
    async with wire.open("second", is_suspect=True):
        pass
    wire.finish(first)
    assert wire.prompts == ["first"]
    assert not any(isinstance(sent, ipc.Cancel) for sent in wire.sent)


async def test_a_held_suspect_waits_for_as_long_as_its_model_lets_requests_wait(wire: Wire):
    wire.open("first", is_suspect=True)
    second = wire.open("second", is_suspect=True)
    wire.table.expire(lambda model: 60)
    assert not second.is_ended
    wire.table.expire(lambda model: -1)
    with pytest.raises(NoCapacity, match="max_wait_s") as caught:
        await second.read()
    assert caught.value.retry_after_s


async def test_held_suspects_end_with_their_worker_and_begin_afresh(wire: Wire):
    wire.open("first", is_suspect=True)
    held = wire.open("second", is_suspect=True)
    wire.table.fail(GONE)
    with pytest.raises(UpstreamFailed):
        await held.read()
    wire.open("third", is_suspect=True)
    assert wire.prompts == ["first", "third"]


async def test_a_held_suspect_too_large_to_send_ends_so_and_lets_the_next_go():
    sent: list[ipc.Command] = []

    def send(command: ipc.Command) -> None:
        if isinstance(command, ipc.Generate) and command.prompt == "big":
            raise ValueError("frame of 300 bytes exceeds 256")
        sent.append(command)

    table = StreamTable(send, lambda: None)
    streams = [
        table.open(ipc.Generate(0, "m", prompt, ipc.Sampling()), is_suspect=True)
        for prompt in ("first", "big", "third")
    ]
    table.dispatch(ipc.Step("m", finished=[ipc.Finished(streams[0].request, "stop", Usage())]))
    with pytest.raises(RequestTooLarge, match="256"):
        await streams[1].read()
    assert [each.prompt for each in sent if isinstance(each, ipc.Generate)] == ["first", "third"]


# tokens


async def test_prompt_tokens_are_counted_by_where_they_came_from(wire: Wire):
    step = ipc.Step(
        "m",
        [
            ipc.Started(1, 10, 0),
            ipc.Started(2, 10, 8, "live"),
            ipc.Started(3, 10, 6, "cache"),
            ipc.Started(4, 10, 6, "host"),
        ],
    )
    wire.table.dispatch(step)
    wire.table.dispatch(step)
    tally = wire.table.tallies["m"]
    assert tally.computed == 2 * (10 + 2 + 4 + 4)
    assert tally.reused == {"live": 16, "cache": 12, "host": 12}

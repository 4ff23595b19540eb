"""Clients of the chat route who leave, or stay and take nothing any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cortex_core.config.neuron import NeuronConfig
from cortex_core.outcome import Outcome
from neuron.routes.chat import ChatEndpoint
from tests.unit.chat.played import HELLO, Exchanged, PlayedRegistry, Script, ask


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [[], [["started"]], [["started"], [("content", "Hel")]]])
async def test_a_client_who_leaves_frees_the_sequence(script: Script, stream: bool):
    registry = PlayedRegistry(script)
    exchanged = Exchanged(registry, ask(stream=stream))
    running = asyncio.create_task(exchanged.run())
    await asyncio.wait_for(registry.opened.wait(), 10)
    if stream and len(script) > 1:
        await exchanged.until(b"Hel")
    exchanged.leave.set()
    await asyncio.wait_for(registry.cancelled.wait(), 10)
    await asyncio.wait_for(running, 10)
    assert not exchanged.is_complete


async def test_a_finished_answer_cancels_nothing():
    registry = PlayedRegistry(HELLO)
    await Exchanged(registry, ask(stream=True)).run()
    assert not registry.cancelled.is_set()


async def test_a_send_that_fails_counts_as_leaving(monkeypatch: pytest.MonkeyPatch):
    async def broken(self: Exchanged, message: Any) -> None:
        raise OSError("gone")

    monkeypatch.setattr(Exchanged, "_send", broken)
    registry = PlayedRegistry(HELLO[:2])
    await asyncio.wait_for(Exchanged(registry, ask(stream=True)).run(), 10)
    assert registry.cancelled.is_set()


async def test_a_server_that_stops_frees_the_sequence():
    registry = PlayedRegistry()
    running = asyncio.create_task(Exchanged(registry, ask(stream=True)).run())
    await asyncio.wait_for(registry.opened.wait(), 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert registry.cancelled.is_set()


class Stopped(Exchanged):
    """A client that takes `pieces` of the answer and then nothing, but stays."""

    pieces = 0

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and len(self.writes) >= self.pieces:
            await asyncio.Event().wait()
        await super()._send(message)


@pytest.mark.parametrize(("stream", "pieces"), [(True, 0), (True, 1), (False, 0)])
async def test_a_client_that_takes_nothing_any_more_has_left(stream: bool, pieces: int):
    outcomes: list[Outcome] = []
    registry = PlayedRegistry(HELLO[:3] if stream else HELLO)
    config = NeuronConfig(reader_timeout_s=0.05)
    endpoint = ChatEndpoint(registry, config, outcomes.append)
    stopped = Stopped(registry, ask(stream=stream), endpoint=endpoint)
    stopped.pieces = pieces
    await asyncio.wait_for(stopped.run(), 10)
    assert not stopped.is_complete
    assert len(stopped.writes) == pieces
    assert [outcome.kind for outcome in outcomes] == ["client_gone"]
    assert registry.cancelled.is_set() == stream, "a whole answer had been computed"


async def test_a_client_that_takes_no_keep_alive_has_left_too():
    registry = PlayedRegistry([["started"]])
    config = NeuronConfig(reader_timeout_s=0.05)
    endpoint = ChatEndpoint(registry, config, silence_s=0.01, keep_alive_s=0.01)
    stopped = Stopped(registry, ask(stream=True), endpoint=endpoint)
    await asyncio.wait_for(stopped.run(), 10)
    assert registry.cancelled.is_set()


async def test_an_answer_may_take_longer_than_its_reader_may():
    registry = PlayedRegistry([["started"]])
    exchanged = Exchanged(registry, ask(stream=True), config=NeuronConfig(reader_timeout_s=0.02))
    running = asyncio.create_task(exchanged.run())
    await registry.opened.wait()
    await asyncio.wait({running}, timeout=0.1)
    registry.step(1, ("content", "late"), "stop")
    assert (await running).is_complete
    assert b"late" in exchanged.text

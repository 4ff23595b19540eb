"""Versions of the node's state, for subscribers of any speed."""

from __future__ import annotations

import asyncio

import msgspec

from cortex_core.fleet.discovery import NodeState
from neuron.state_feed import COALESCE_S, StateFeed


def build(version: int) -> NodeState:
    return NodeState("n", "boot", version, False, [], [])


async def test_the_first_state_is_there_at_once():
    feed = StateFeed(build)
    state = await feed.beyond(0)
    assert state == build(1)
    assert msgspec.json.decode(feed.encoded, type=NodeState) == state


async def test_changes_of_one_turn_make_one_version():
    feed = StateFeed(build)
    for _ in range(5):
        feed.changed(urgent=True)
    assert (await feed.beyond(1)) == build(2)
    await asyncio.sleep(0)
    assert feed.state.version == 2


async def test_counts_are_held_back_and_phases_are_not():
    feed = StateFeed(build)
    loop = asyncio.get_running_loop()
    start = loop.time()
    feed.changed(urgent=False)
    await feed.beyond(1)
    assert loop.time() - start < COALESCE_S / 2
    feed.changed(urgent=False)
    feed.changed(urgent=False)
    await feed.beyond(2)
    assert loop.time() - start >= COALESCE_S * 0.9
    feed.changed(urgent=False)
    feed.changed(urgent=True)
    before = loop.time()
    await feed.beyond(3)
    assert loop.time() - before < COALESCE_S / 2


async def test_a_slow_subscriber_gets_the_latest_state():
    feed = StateFeed(build)
    for version in range(1, 6):
        feed.changed(urgent=True)
        await feed.beyond(version)
    assert (await feed.beyond(1)) == build(6)


async def test_every_subscriber_is_woken():
    feed = StateFeed(build)
    waiting = [asyncio.create_task(feed.beyond(1)) for _ in range(3)]
    await asyncio.sleep(0)
    feed.changed(urgent=True)
    assert await asyncio.gather(*waiting) == [build(2)] * 3


async def test_a_subscriber_that_left_disturbs_nobody():
    feed = StateFeed(build)
    leaver, stayer = (asyncio.create_task(feed.beyond(1)) for _ in range(2))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    feed.changed(urgent=True)
    assert await stayer == build(2)


async def test_closing_ends_every_subscription():
    feed = StateFeed(build)
    waiting = asyncio.create_task(feed.beyond(1))
    await asyncio.sleep(0)
    feed.changed(urgent=False)
    feed.close()
    assert await waiting is None
    assert await feed.beyond(0) is None

"""Responses are kept as long and as many as they may, and outlive the gateway where there is a
file."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.config.loader import ConfigError
from cortex_gateway.response_store import FILE, ResponseStore


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def response(name: str, text: str = "b") -> dict[str, Any]:
    said = {"id": f"msg_{name}", "type": "message", "role": "assistant", "content": text}
    return {"id": name, "object": "response", "output": [said]}


ASKED = [{"id": "msg_u", "role": "user", "content": "a"}]


@asynccontextmanager
async def opened(
    folder: Path | None = None, *, now: Clock | None = None, most_bytes: int = 1_000_000
) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(folder, ttl_s=60, most_bytes=most_bytes, now=now or Clock())
    try:
        yield store
    finally:
        await store.close()


async def written(store: ResponseStore) -> None:
    """Everything before this has been written."""
    await store.forget("nothing")
    await asyncio.sleep(0)


async def test_what_is_kept_can_be_read_at_once_and_later() -> None:
    async with opened() as store:
        store.keep(response("resp_1"), ASKED)
        fresh = store.find("resp_1")
        await written(store)
        assert store.find("resp_1") == fresh
        assert [item["content"] for item in store.items("resp_1") or []] == ["a", "b"]
        assert (store.item("msg_resp_1") or {})["content"] == "b"
        assert (store.item("msg_u") or {})["content"] == "a"


async def test_what_is_not_kept_is_none() -> None:
    async with opened() as store:
        assert store.find("resp_1") is None
        assert store.items("resp_1") is None
        assert store.item("msg_1") is None
        assert not await store.forget("resp_1")


async def test_what_is_forgotten_is_gone_with_its_items() -> None:
    async with opened() as store:
        store.keep(response("resp_1"), ASKED)
        assert await store.forget("resp_1")
        await written(store)
        assert store.find("resp_1") is None
        assert store.item("msg_resp_1") is None


async def test_a_file_outlives_its_gateway(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        store.keep(response("resp_1"), ASKED)
    async with opened(tmp_path) as store:
        assert store.items("resp_1") is not None


async def test_a_response_has_its_time() -> None:
    clock = Clock()
    async with opened(now=clock) as store:
        store.keep(response("resp_1"), ASKED)
        await written(store)
        clock.time += 61
        assert store.find("resp_1") is None


async def test_the_oldest_leave_when_there_are_too_many() -> None:
    clock, random = Clock(), Random(1)
    async with opened(now=clock, most_bytes=20_000) as store:
        for number in range(10):
            clock.time += 1
            text = "".join(map(chr, random.choices(range(32, 127), k=6000)))
            store.keep(response(f"resp_{number}", text), [])
        await written(store)
        left = [number for number in range(10) if store.find(f"resp_{number}")]
        assert left == list(range(10 - len(left), 10))
        assert 1 <= len(left) <= 3


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_one_more_costs_the_same_however_many_there_are(tmp_path: Path, kind: str) -> None:
    """In steps of SQLite's machine, thousands of them at a time."""
    clock = Clock()
    steps: list[int] = []
    async with opened(tmp_path if kind == "file" else None, now=clock) as store:
        for number in range(1000):
            clock.time += 0.01
            store.keep(response(f"resp_{number}"), ASKED)
            if number in (20, 999):
                await written(store)
                taken = itertools.count()
                store._database.set_progress_handler(lambda taken=taken: next(taken) < 0, 10)
                store.keep(response(f"more_{number}"), ASKED)
                await written(store)
                store._database.set_progress_handler(None, 0)
                steps.append(next(taken))
    assert 0 < steps[1] < 2 * steps[0]


async def test_reading_does_not_wait_for_a_write_that_takes_long(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        store.keep(response("resp_1"), ASKED)
        await written(store)
        other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        store.keep(response("resp_2"), ASKED)
        for _ in range(50):
            assert store.find("resp_1") is not None
            await asyncio.sleep(0.002)
        other.execute("ROLLBACK")  # had a read waited for the write, the write had given up now
        await written(store)
        (count,) = other.execute("SELECT count(*) FROM responses").fetchone()
        other.close()
        assert count == 2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000), st.booleans()), max_size=40))
def test_the_newest_that_fit_are_kept_whatever_else_is_forgotten(
    acts: list[tuple[int, int, bool]],
) -> None:
    """Those that an operator or the clock takes make room, too."""

    async def play() -> None:
        clock, random = Clock(), Random(1)
        kept: dict[str, tuple[float, int]] = {}
        async with opened(now=clock, most_bytes=5000) as store:
            for number, (seconds, length, is_forgotten) in enumerate(acts):
                clock.time += seconds
                if is_forgotten and kept:
                    assert await store.forget(kept.popitem()[0])
                name = f"resp_{number}"
                text = "".join(map(chr, random.choices(range(32, 127), k=length)))
                store.keep(response(name, text), [])
                await written(store)
                (size,) = store._database.execute(
                    "SELECT size FROM responses WHERE id = ?", (name,)
                ).fetchone() or (0,)
                kept[name] = clock.time, size
                while (oldest := next(iter(kept), None)) and (
                    kept[oldest][0] <= clock.time - 60 or sum(s for _, s in kept.values()) > 5000
                ):
                    del kept[oldest]
                assert {name for name in kept if store.find(name)} == set(kept)
                (count,) = store._database.execute("SELECT count(*) FROM responses").fetchone()
                assert count == len(kept)

    asyncio.run(play())


async def test_what_a_file_holds_already_counts(tmp_path: Path) -> None:
    noise = "".join(map(chr, Random(1).choices(range(32, 127), k=6000)))
    async with opened(tmp_path) as store:
        store.keep(response("resp_1", noise), [])
    async with opened(tmp_path, most_bytes=6000) as store:
        store.keep(response("resp_2", noise[::-1]), [])
        await written(store)
        assert [bool(store.find(name)) for name in ("resp_1", "resp_2")] == [False, True]


async def test_an_item_is_there_as_long_as_any_response_that_has_it() -> None:
    async with opened() as store:
        first = response("resp_1")
        store.keep(first, ASKED)
        store.keep(response("resp_2"), ASKED + first["output"])
        await written(store)
        assert await store.forget("resp_2")
        assert (store.item("msg_resp_1") or {})["content"] == "b"
        assert store.item("msg_resp_2") is None
        store.keep(response("resp_3"), ASKED + first["output"])
        assert await store.forget("resp_1")
        assert (store.item("msg_resp_1") or {})["content"] == "b"
        assert await store.forget("resp_3")
        await written(store)
        assert store.item("msg_resp_1") is None


async def test_an_item_outlives_the_time_of_the_first_response_that_has_it() -> None:
    clock = Clock()
    async with opened(now=clock) as store:
        first = response("resp_1")
        store.keep(first, ASKED)
        await written(store)
        clock.time += 40
        store.keep(response("resp_2"), ASKED + first["output"])
        await written(store)
        clock.time += 40
        assert store.find("resp_1") is None
        assert (store.item("msg_resp_1") or {})["content"] == "b"


async def test_a_file_of_another_schema_is_set_aside_with_its_journal(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("CREATE TABLE responses (other)")
    database.close()
    async with opened(tmp_path) as store:
        store.keep(response("resp_1"), ASKED)
        await written(store)
        assert store.find("resp_1") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "responses.unreadable"]


async def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    async with opened(tmp_path) as store:
        store.keep(response("resp_1"), ASKED)
        await written(store)
        assert store.find("resp_1") is not None
    assert (tmp_path / FILE).with_suffix(".unreadable").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"gateway\.state_dir"):
        ResponseStore(tmp_path / "file", ttl_s=60, most_bytes=1000)

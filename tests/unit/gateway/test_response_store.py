"""Responses are kept as long and as many as they may, and outlive the gateway where there is a
file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

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

"""Encoded bodies become what they were, or an error that names what is wrong."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import InvalidRequest, UnsupportedEncoding
from cortex_gateway.inflate import STEP_BYTES, inflated

LIMIT = 4 * STEP_BYTES


@given(
    st.binary(max_size=400),
    st.integers(1, 3000),
    st.sampled_from(
        [("gzip", gzip.compress), (" X-GZIP ", gzip.compress), ("deflate", zlib.compress)]
    ),
)
def test_any_body_comes_back(seed: bytes, times: int, coding: tuple) -> None:
    encoding, compress = coding
    body = seed * times
    got = asyncio.run(inflated(compress(body), encoding, LIMIT))
    assert got == (body if len(body) <= LIMIT else None)


@pytest.mark.parametrize("size", [STEP_BYTES, 2 * STEP_BYTES, LIMIT])
async def test_a_body_that_fills_whole_steps_comes_back(size: int) -> None:
    assert await inflated(gzip.compress(bytes(size)), "gzip", LIMIT) == bytes(size)


@pytest.mark.parametrize("encoding", ["", "identity", "Identity "])
async def test_without_an_encoding_nothing_is_done(encoding: str) -> None:
    assert await inflated(b"as it is", encoding, LIMIT) == b"as it is"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x" * 1000])
async def test_an_unknown_encoding_is_named(encoding: str) -> None:
    words = r"content-encoding: .* is not supported; send gzip, deflate or none"
    with pytest.raises(UnsupportedEncoding, match=words) as caught:
        await inflated(b"x", encoding, LIMIT)
    assert repr(encoding[:80]) in caught.value.message
    assert caught.value.param == "content-encoding"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "breaks off"),
        (b"no such thing", "incorrect header"),
        (gzip.compress(b"abc" * 100)[:-9], "breaks off"),
        (gzip.compress(b"abc" * 100) + b"x", "something follows"),
        (gzip.compress(b"abc")[:-8] + b"wrongsum", "incorrect data check"),
    ],
    ids=["nothing", "text", "cut", "more", "sum"],  # what gzip writes holds the time
)
async def test_a_body_that_is_not_what_it_says_is_told_so(body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        await inflated(body, "gzip", LIMIT)


async def test_a_bomb_takes_no_more_memory_than_its_limit() -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    tracemalloc.start()
    try:
        assert await inflated(bomb, "gzip", LIMIT) is None
        assert tracemalloc.get_traced_memory()[1] < 2 * LIMIT
    finally:
        tracemalloc.stop()


async def test_others_have_their_turn_while_a_long_body_is_inflated() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await inflated(gzip.compress(bytes(LIMIT)), "gzip", LIMIT)
    counting.cancel()
    assert turns >= LIMIT // STEP_BYTES

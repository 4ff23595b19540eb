"""Reading bodies and heads, without sockets."""

from __future__ import annotations

import gzip
from typing import Any

import msgspec
import pytest

from cortex_core.errors import InvalidJson, InvalidRequest, RequestTooLarge
from cortex_gateway.intake import RequestHead, decode_head, read_body, renamed
from cortex_gateway.vigil import ClientGone


class Incoming:
    """A `receive` that gives these pieces; None stands for a disconnect."""

    def __init__(self, *pieces: bytes | None) -> None:
        self._pieces = list(pieces)
        self.taken = 0

    async def __call__(self) -> dict[str, Any]:
        piece = self._pieces[self.taken]
        self.taken += 1
        if piece is None:
            return {"type": "http.disconnect"}
        more = self.taken < len(self._pieces)
        return {"type": "http.request", "body": piece, "more_body": more}


async def test_pieces_are_joined() -> None:
    assert await read_body(Incoming(b"ab", b"", b"cd", b""), [], 4) == b"abcd"


async def test_an_announced_length_beyond_the_limit_reads_nothing() -> None:
    incoming = Incoming(b"x")
    with pytest.raises(RequestTooLarge):
        await read_body(incoming, [(b"content-length", b"5")], 4)
    assert incoming.taken == 0


async def test_reading_stops_where_the_limit_is_passed() -> None:
    incoming = Incoming(b"abc", b"de", b"fg", b"")
    with pytest.raises(RequestTooLarge):
        await read_body(incoming, [], 4)
    assert incoming.taken == 2


async def test_an_encoded_body_is_read_as_what_it_was() -> None:
    packed = gzip.compress(b"abcd")
    incoming = Incoming(packed[:5], packed[5:])
    headers = [(b"content-encoding", b"gzip")]
    assert await read_body(incoming, headers, 100) == b"abcd"


async def test_the_limit_is_for_what_an_encoded_body_becomes() -> None:
    incoming = Incoming(gzip.compress(bytes(101)))
    with pytest.raises(RequestTooLarge):
        await read_body(incoming, [(b"content-encoding", b"gzip")], 100)


@pytest.mark.parametrize("pieces", [(None,), (b"ab", None)])
async def test_a_client_that_leaves_is_gone(pieces: tuple[bytes | None, ...]) -> None:
    with pytest.raises(ClientGone):
        await read_body(Incoming(*pieces), [], 100)


def test_only_model_and_stream_are_looked_at() -> None:
    body = b'{"messages":[{"model":"inner"}],"model":"a/b","n":"wrong","stream":true}'
    assert decode_head(body) == RequestHead("a/b", True)


def chat(*contents: str, **fields: Any) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return msgspec.json.encode({"model": "m", "messages": messages} | fields)


def test_prompts_that_begin_alike_have_prefixes_that_begin_alike() -> None:
    first, second = (
        decode_head(chat("s" * 3000, end * 3000), has_prompt=True).prefix for end in "xy"
    )
    shared = sum(a == b for a, b in zip(first, second, strict=True))
    assert len(first) == 11
    assert shared == 5  # whole blocks of 512 bytes, from the message's own beginning


def test_tools_are_a_part_of_the_prefix_and_samplers_are_not() -> None:
    long = "s" * 3000
    plain = decode_head(chat(long), has_prompt=True).prefix
    assert decode_head(chat(long, temperature=1), has_prompt=True).prefix == plain
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert decode_head(chat(long, tools=tools), has_prompt=True).prefix[0] != plain[0]


def test_what_has_no_prompt_or_a_short_one_has_no_prefix() -> None:
    assert decode_head(chat("s" * 3000)).prefix == ()
    assert decode_head(chat("s"), has_prompt=True).prefix == ()


def test_a_renamed_request_differs_in_nothing_but_its_model() -> None:
    body = b'{ "model" : "alias", "n": 1e400, "messages":[ {"content": "\\u00e9\xc3\xa9"} ]}'
    assert renamed(body, "org/name") == (
        b'{"model":"org/name","n":1e400,"messages":[ {"content": "\\u00e9\xc3\xa9"} ]}'
    )


@pytest.mark.parametrize("body", [b"", b"{", b'{"model":"\xff"}', b"[" * 100_000])
def test_what_is_not_json_is_invalid_json(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        decode_head(body)


@pytest.mark.parametrize("body", [b"1", b"{}", b'{"model":1}', b'{"model":"m","stream":[]}'])
def test_what_is_not_a_request_is_an_invalid_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_head(body)


def test_a_long_wrong_value_is_not_quoted_in_full() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_head(b'{"model":[%s]}' % b",".join([b"1"] * 10_000))
    assert len(caught.value.message) < 150

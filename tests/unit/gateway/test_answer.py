"""What a neuron's whole answer means."""

from __future__ import annotations

import pytest

from cortex_core.errors import NodeUnavailable, ShuttingDown, Stalled, UpstreamFailed
from cortex_core.translate.names import Names
from cortex_gateway.answer import (
    NodeFault,
    cache_in,
    cached_in,
    judge,
    kind_of,
    passed_headers,
    with_ignored,
)


def envelope(code: str) -> bytes:
    return b'{"error":{"message":"why","type":"x","code":"%s"}}' % code.encode()


def test_hop_by_hop_headers_stay_and_all_others_pass_in_order() -> None:
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Transfer-Encoding", b"chunked"),
        (b"X-Cortex-Cache", b"hit"),
        (b"Connection", b"keep-alive"),
        (b"Set-Thing", b"1"),
        (b"Set-Thing", b"2"),
        (b"X-Cortex-Node", b"a liar's"),
    ]
    assert passed_headers(headers) == [
        (b"content-type", b"application/json"),
        (b"x-cortex-cache", b"hit"),
        (b"set-thing", b"1"),
        (b"set-thing", b"2"),
    ]


@pytest.mark.parametrize("status", [404, 500, 502, 503])
def test_an_answer_that_says_not_here_is_kept_for_when_nobody_else_can(status: int) -> None:
    with pytest.raises(NodeFault) as caught:
        judge("a", status, [], envelope("model_loading"))
    assert caught.value.answer is not None
    assert caught.value.answer.body == envelope("model_loading")
    assert caught.value.error.code == "model_loading"


@pytest.mark.parametrize("status", [400, 409, 413, 422, 429, 504])
def test_a_refusal_passes_at_once(status: int) -> None:
    whole = judge("a", status, [], envelope("conflict"))
    assert whole.error is not None
    assert (whole.status, whole.body) == (status, envelope("conflict"))


@pytest.mark.parametrize("body", [b"{}", b'{"choices":[]}', b'{"usage":null}'])
def test_what_holds_no_choice_is_no_completion(body: bytes) -> None:
    with pytest.raises(NodeFault, match="an answer that is none"):
        judge("a", 200, [], body, is_completion=True)
    assert judge("a", 200, [], body).body == body


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_no_fault_of_the_client(status: int) -> None:
    with pytest.raises(NodeFault, match="refused the gateway's token") as caught:
        judge("a", status, [], envelope("invalid_api_key"))
    assert isinstance(caught.value.error, UpstreamFailed)
    assert caught.value.answer is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b""),
        (200, b"\xff"),
        (200, envelope("upstream_failed")),
        (500, b"<html>"),
        (503, b"{}"),
        (302, envelope("conflict")),
        (204, b""),
    ],
)
def test_what_is_no_answer_of_a_neuron_is_a_failure(status: int, body: bytes) -> None:
    with pytest.raises(NodeFault) as caught:
        judge("a", status, [], body)
    assert caught.value.error.code == "upstream_failed"
    assert caught.value.answer is None


def test_kinds_follow_from_the_error_and_whether_a_node_had_the_request() -> None:
    assert kind_of(Stalled(""), 504, was_forwarded=True) == "stalled"
    assert kind_of(UpstreamFailed(""), 502, was_forwarded=True) == "upstream_failed"
    assert kind_of(NodeUnavailable(""), 503, was_forwarded=True) == "upstream_failed"
    assert kind_of(NodeUnavailable(""), 503, was_forwarded=False) == "rejected"
    assert kind_of(ShuttingDown(""), 503, was_forwarded=False) == "rejected"


def test_what_was_ignored_twice_over_is_told_once_over() -> None:
    headers = [(b"x-cortex-ignored", b"user"), (b"set-thing", b"1")]
    assert with_ignored(headers, ["metadata", "container"], Names()) == [
        (b"set-thing", b"1"),
        (b"x-cortex-ignored", b"user, metadata, container"),
    ]
    assert with_ignored(headers, [], Names()) == headers[::-1]


def test_what_a_node_ignored_is_told_by_the_clients_own_names() -> None:
    headers = [(b"x-cortex-ignored", b"enable_thinking, reasoning_effort, user")]
    names = Names({"enable_thinking": "", "reasoning_effort": "effort"})
    assert with_ignored(headers, ["effort"], names) == [(b"x-cortex-ignored", b"effort, user")]
    assert with_ignored([(b"x-cortex-ignored", b"enable_thinking")], [], names) == []


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ("reused=6 computed=4 source=live", (10, 6)),
        ("reused=0 computed=4 source=none miss=empty", (4, 0)),
        ("hit", None),
        ("", None),
    ],
)
def test_cached_tokens_are_read_off_the_head(cache: str, expected: object) -> None:
    headers = passed_headers([(b"Set-Thing", b"1"), (b"X-Cortex-Cache", cache.encode())])
    assert cache_in(headers) == cache
    assert cached_in(cache) == expected


def test_without_its_header_nothing_is_known_of_a_cache() -> None:
    assert cache_in([(b"set-thing", b"1")]) is None

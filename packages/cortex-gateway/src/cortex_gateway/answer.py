"""What a neuron's answer means: which of its headers pass on, and whether it is a failure.

Pure functions over a status, headers and a body that has been read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from cortex_core.errors import CortexError, UpstreamFailed, parse_openai
from cortex_core.outcome import OutcomeKind, Usage
from cortex_core.translate.names import Names
from cortex_gateway.tail import UNREADABLE, answer_of

__all__ = [
    "ELSEWHERE",
    "NodeFault",
    "Whole",
    "cache_in",
    "cached_in",
    "judge",
    "kind_of",
    "passed_headers",
    "with_ignored",
]

RawHeaders = Iterable[tuple[bytes, bytes]]

# Hop-by-hop headers (RFC 9110, 7.6.1), what the gateway's own server writes, and what the gateway
# knows better. The length is decided anew, because an error event may follow a stream.
NOT_PASSED = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"server",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-cortex-node",
        b"x-request-id",
    }
)

# Answers that say "not here, not now": another replica may do better. 404 is among them because
# the model may have been unloaded a moment ago, before the node's event of it arrived. 504 is not:
# a prompt that has stalled one node would stall the next as well.
ELSEWHERE = frozenset({404, 500, 502, 503})

_REUSED = re.compile(r"reused=(\d+) computed=(\d+)")


class Whole(NamedTuple):
    """An answer that is here in full."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    usage: Usage | None = None
    error: CortexError | None = None


class NodeFault(Exception):
    """A node failed a request before the first byte of an answer reached the client.

    `answer`: the neuron's own words, where it said any. `may_ask_again`: the same node may be
    asked once more, because the connection may have been closing when the request was sent.
    """

    def __init__(
        self, error: CortexError, *, answer: Whole | None = None, may_ask_again: bool = False
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.answer = answer
        self.may_ask_again = may_ask_again


class _Envelope(msgspec.Struct):
    error: dict[str, object]


def passed_headers(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Lower-case, in their order."""
    passed = []
    for name, value in headers:
        name = name.lower()
        if name not in NOT_PASSED:
            passed.append((name, value))
    return passed


def with_ignored(
    headers: list[tuple[bytes, bytes]], ignored: Iterable[str], names: Names
) -> list[tuple[bytes, bytes]]:
    """The headers with these parameters, too, in `x-cortex-ignored`. `names`: what the client calls
    those that the node names there."""
    told = [value.decode("latin-1") for name, value in headers if name == b"x-cortex-ignored"]
    words = [word for value in told for word in value.split(", ")]
    named = [names.of(word) for word in words]
    every = [name for name in dict.fromkeys([*named, *ignored]) if name]
    others = [(name, value) for name, value in headers if name != b"x-cortex-ignored"]
    if not every:
        return others
    return [*others, (b"x-cortex-ignored", ", ".join(every).encode("ascii", "replace"))]


def cache_in(headers: RawHeaders) -> str | None:
    """What a node says of its prompt's cache, in lower-case headers. A stream that began before it
    was known has none."""
    for name, value in headers:
        if name == b"x-cortex-cache":
            return value.decode("latin-1")
    return None


def cached_in(cache: str) -> tuple[int, int] | None:
    """Tokens of the prompt, and those of them that were reused."""
    found = _REUSED.match(cache)
    if found is None:
        return None
    reused, computed = int(found[1]), int(found[2])
    return reused + computed, reused


def judge(
    node: str, status: int, headers: RawHeaders, body: bytes, *, is_completion: bool = False
) -> Whole:
    """A whole answer, good or bad, that should reach the client. `is_completion`: a good one is.
    Raises NodeFault."""
    if 200 <= status < 300:
        try:
            answer = answer_of(body)
        except UNREADABLE:
            answer = None
        if answer is None or answer.error or (is_completion and not answer.choices):
            raise NodeFault(
                UpstreamFailed(f"the node {node} sent an answer that is none: {_excerpt(body)}")
            )
        return Whole(status, passed_headers(headers), body, answer.usage)
    if status in (401, 403):
        # The neuron refused the gateway, not the client, who must not be told to mend its key.
        raise NodeFault(
            UpstreamFailed(f"the node {node} refused the gateway's token (HTTP {status})")
        )
    error = _error_in(body, status)
    if error is None:
        raise NodeFault(UpstreamFailed(f"the node {node} answered HTTP {status}: {_excerpt(body)}"))
    whole = Whole(status, passed_headers(headers), body, None, error)
    if status in ELSEWHERE:
        raise NodeFault(error, answer=whole)
    return whole


def _excerpt(body: bytes) -> str:
    return repr(body[:200].decode("utf-8", "replace"))


def kind_of(error: CortexError, status: int, *, was_forwarded: bool) -> OutcomeKind:
    """How a request that ends in `error` ended."""
    if error.code == "stalled":
        return "stalled"
    if was_forwarded and status >= 500:
        return "upstream_failed"
    return "rejected"


def _error_in(body: bytes, status: int) -> CortexError | None:
    """The error of an OpenAI envelope; None if the body is none or the status is not an error."""
    if status < 400:
        return None
    try:
        msgspec.json.decode(body, type=_Envelope)
    except UNREADABLE:
        return None
    return parse_openai(body, status=status)

"""The one record a request ends with. Logs, metrics, traces and budgets all derive from it."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Outcome", "OutcomeKind", "Usage"]

OutcomeKind = Literal["ok", "client_gone", "upstream_failed", "stalled", "rejected"]


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request. `cached` is the part of `prompt` whose KV was reused;
    `reasoning` is the part of `completion` inside a reasoning block."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """How one request ended. Times in seconds; `None` where the phase was never reached.

    `queued_s` is the whole wait for a replica, of which `load_s` was spent while the model was
    loading; `ttft_s` and `total_s` begin with the request's head. `device` is where it was last
    sent, `retries` how often it was sent again. `cache` is what its node said of the prompt's
    cache, as in `x-cortex-cache`."""

    kind: OutcomeKind
    request_id: str
    model: str
    node: str | None
    status: int
    code: str | None
    streamed: bool
    usage: Usage | None
    ttft_s: float | None
    total_s: float
    device: str | None = None
    queued_s: float = 0.0
    load_s: float | None = None
    retries: int = 0
    cache: str | None = None

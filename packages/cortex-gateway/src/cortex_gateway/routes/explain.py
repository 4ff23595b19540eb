"""`/admin/explain/*`: why the fleet does what it does, in the words of those who decided."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from cortex_core.envelopes.admin import PlacementExplained, RequestExplained, ToldLine
from cortex_core.errors import InvalidRequest, NotFound
from cortex_core.fleet.placement import Placement
from cortex_core.fleet.story import StoryLine
from cortex_core.outcome import Outcome
from cortex_gateway.ledger import REMEMBERED
from cortex_gateway.routes.answers import answer

if TYPE_CHECKING:
    from cortex_gateway.app import Gateway

__all__ = ["explain_placement", "explain_request"]


async def explain_placement(request: Request) -> Response:
    """`?model=`: where a request for it would go now, decided without acting or asking a node."""
    gateway: Gateway = request.app.state.gateway
    name = request.query_params.get("model")
    if not name:
        raise InvalidRequest("model: missing required parameter", param="model")
    conductor, now = gateway.fleet.conductor, time.monotonic()
    explained = conductor.explain(name, now)
    decision = explained.decision
    place = decision if isinstance(decision, Placement) else None
    story = [
        line
        for node in conductor.topology.names
        for line in conductor.history(explained.model, node)
    ]
    return answer(
        PlacementExplained(
            explained.model,
            [replica.node for replica in explained.replicas],
            None if place is None else place.node,
            None if place is None else place.device,
            [] if place is None else list(place.evict),
            list(decision.why),
            _told(story, now),
        )
    )


async def explain_request(request: Request) -> Response:
    """What became of one of the last requests, by its `x-request-id`."""
    gateway: Gateway = request.app.state.gateway
    identity = request.path_params["request"]
    outcome = gateway.ledger.outcome(identity)
    story = gateway.fleet.conductor.story(identity)
    if outcome is None and not story:
        raise NotFound(
            f"no request {identity[:100]!r}; only the last {REMEMBERED} are kept", param="request"
        )
    prefill_s, decode_s, computed = _phases(outcome)
    return answer(
        RequestExplained(
            identity, outcome, prefill_s, decode_s, computed, _told(story, time.monotonic())
        )
    )


def _phases(outcome: Outcome | None) -> tuple[float | None, float | None, int | None]:
    """Seconds of prefill and decode, and prompt tokens computed. Of an answer that came whole only
    the neuron knows where one ended and the other began."""
    if outcome is None:
        return None, None, None
    usage = outcome.usage
    computed = None if usage is None else usage.prompt - usage.cached
    if not outcome.streamed or outcome.ttft_s is None:
        return None, None, computed
    prefill_s = max(0.0, outcome.ttft_s - outcome.queued_s)
    return prefill_s, outcome.total_s - outcome.ttft_s, computed


def _told(story: Iterable[StoryLine], now: float) -> list[ToldLine]:
    lines = sorted(story, key=lambda line: line.at)
    return [ToldLine(round(now - line.at, 3), line.text) for line in lines]

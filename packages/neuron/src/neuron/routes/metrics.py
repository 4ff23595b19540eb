"""`GET /metrics` for Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from neuron.metrics import CONTENT_TYPE, Metrics

__all__ = ["routes"]


def routes(metrics: Metrics) -> list[Route]:
    async def show(request: Request) -> Response:
        # Not Response's media_type: Starlette would write the charset a second time.
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    return [Route("/metrics", show)]

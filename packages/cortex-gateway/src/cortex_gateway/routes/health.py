"""`GET /health`, `/version` and, on the metrics listener, `/metrics`."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import cortex_gateway
from cortex_gateway.metrics import CONTENT_TYPE
from cortex_gateway.routes.answers import answer

__all__ = ["METRICS_ROUTES", "ROUTES"]


async def health(request: Request) -> Response:
    """Liveness in the status code, readiness in the body.

    200 while the gateway serves, even with no node in reach: restarting it, or taking it out of a
    load balancer, would mend nothing, and its clients get errors that name the cause. `status` is
    "ok" when every node is reachable and "degraded" otherwise. 503 "draining" once it has been
    told to stop: new requests belong elsewhere.
    """
    gateway = request.app.state.gateway
    topology = gateway.fleet.topology
    nodes = {
        name: {"reachable": topology.is_reachable(name), "cause": topology.cause(name) or None}
        for name in topology.names
    }
    if gateway.admission.is_draining:
        return answer({"status": "draining", "nodes": nodes}, 503)
    is_whole = all(node["reachable"] for node in nodes.values())
    return answer({"status": "ok" if is_whole else "degraded", "nodes": nodes})


async def version(request: Request) -> Response:
    return answer({"name": "cortex-gateway", "version": cortex_gateway.__version__})


async def metrics(request: Request) -> Response:
    gateway = request.app.state.gateway
    gateway.metrics.look(gateway.fleet.facts())
    # Thousands of series take milliseconds to print, and streams must not wait for them.
    body = await asyncio.to_thread(gateway.metrics.render)
    return Response(body, headers={"content-type": CONTENT_TYPE})


ROUTES = [Route("/health", health), Route("/version", version)]
METRICS_ROUTES = [Route("/metrics", metrics), Route("/health", health)]

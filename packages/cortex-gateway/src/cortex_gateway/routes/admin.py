"""`/admin/*`: the raw view of the fleet, and loads and unloads handed on to one neuron.

There is no placement here: where several nodes qualify, the caller names one.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.envelopes.parameters import decode_object
from cortex_core.errors import (
    InvalidRequest,
    ModelNotFound,
    NodeUnavailable,
    NotFound,
    ShuttingDown,
)
from cortex_gateway.intake import read_body
from cortex_gateway.routes.answers import answer
from cortex_gateway.upstream import NETWORK_ERRORS, fault_of

__all__ = ["ROUTES"]

MAX_BODY_BYTES = 1024 * 1024


async def show_fleet(request: Request) -> Response:
    """Every node: name, endpoint, whether and why not reachable, requests in flight, last state."""
    gateway = request.app.state.gateway
    fleet = gateway.fleet
    nodes = [
        {
            "name": neuron.name,
            "endpoint": neuron.endpoint,
            "reachable": fleet.topology.is_reachable(neuron.name),
            "cause": fleet.topology.cause(neuron.name) or None,
            "in_flight": fleet.in_flight[neuron.name],
            "state": fleet.topology.state(neuron.name),
        }
        for neuron in gateway.upstream.neurons.values()
    ]
    return answer({"nodes": nodes})


async def load_model(request: Request) -> Response:
    """`{model, node?, …}`; all but `node` is the neuron's to read. Without `node` the fleet must
    have exactly one node in reach."""
    values = await _read_order(request)
    node = _named_node(request, values)
    if node is None:
        topology = request.app.state.gateway.fleet.topology
        reachable = [name for name in topology.names if topology.is_reachable(name)]
        node = _only(reachable, "can load it")
        if node is None:
            raise topology.refuse(values["model"])
    return await _hand_on(request, node, "POST", "/models/load", values)


async def unload_model(request: Request) -> Response:
    """`{model, node?}`; without `node` the model must be on exactly one node."""
    values = await _read_order(request)
    node = _named_node(request, values)
    if node is None:
        fleet = request.app.state.gateway.fleet
        locations = fleet.topology.models().get(values["model"], [])
        holders = sorted({location.node for location in locations})
        node = _only(holders, "hold it")
        if node is None:
            known = ", ".join(fleet.topology.models()) or "none"
            raise ModelNotFound(
                f"no node has the model {values['model']!r}; known models: {known}", param="model"
            )
    return await _hand_on(request, node, "POST", "/models/unload", values)


async def show_operation(request: Request) -> Response:
    node = _known(request, request.path_params["node"])
    path = "/operations/" + quote(request.path_params["operation"], safe="")
    return await _hand_on(request, node, "GET", path, None)


async def _read_order(request: Request) -> dict[str, Any]:
    if request.app.state.gateway.admission.is_draining:
        raise ShuttingDown("the gateway is shutting down; try again shortly")
    body = await read_body(request.receive, request.scope["headers"], MAX_BODY_BYTES)
    values = decode_object(body)
    for name in ("model", "node"):
        value = values.get(name)
        if value is None and name == "node":
            continue
        if not isinstance(value, str) or not value:
            raise InvalidRequest(f"{name}: expected a non-empty string", param=name)
    return values


def _named_node(request: Request, values: dict[str, Any]) -> str | None:
    """Takes `node` out of the order."""
    node = values.pop("node", None)
    return None if node is None else _known(request, node)


def _known(request: Request, node: str) -> str:
    names = request.app.state.gateway.fleet.topology.names
    if node not in names:
        raise NotFound(
            f"no node is named {node!r}; known nodes: {', '.join(names) or 'none'}", param="node"
        )
    return node


def _only(nodes: list[str], claim: str) -> str | None:
    if len(nodes) > 1:
        raise InvalidRequest(
            f"node: required, because several nodes {claim}: {', '.join(nodes)}", param="node"
        )
    return nodes[0] if nodes else None


async def _hand_on(
    request: Request, node: str, method: str, path: str, values: dict[str, Any] | None
) -> Response:
    """The neuron's own answer, and the node's name in `x-cortex-node`."""
    gateway = request.app.state.gateway
    topology = gateway.fleet.topology
    if not topology.is_reachable(node):
        raise NodeUnavailable(f"the node {node} cannot be reached: {topology.cause(node)}")
    headers = {"X-Request-Id": request.state.request_id}
    if values is not None:
        headers["Content-Type"] = "application/json"
    try:
        response = await gateway.upstream.neurons[node].ask(
            method,
            path,
            None if values is None else msgspec.json.encode(values),
            headers=headers,
            silence_s=gateway.config.gateway.first_byte_timeout_s,
        )
        async with response:
            body = await response.read()
    except NETWORK_ERRORS as error:
        raise fault_of(node, error) from None
    return Response(
        body,
        response.status,
        headers={"x-cortex-node": node},
        media_type=response.content_type,
    )


ROUTES = [
    Route("/admin/fleet", show_fleet),
    Route("/admin/models/load", load_model, methods=["POST"]),
    Route("/admin/models/unload", unload_model, methods=["POST"]),
    Route("/admin/operations/{node}/{operation}", show_operation),
]

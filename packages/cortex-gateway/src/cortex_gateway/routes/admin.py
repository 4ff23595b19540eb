"""`/admin/*`: the raw view of the fleet, and what operators may tell it.

What leaves something to decide goes to the conductor; what names node and device, or means force,
is handed on to its neuron as it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import cortex_gateway
from cortex_core.config.loading import LoadOptions, SamplingDefaults
from cortex_core.envelopes.admin import FleetNode, FleetView, Reloaded
from cortex_core.envelopes.parameters import decode_request
from cortex_core.errors import (
    Conflict,
    CortexError,
    InvalidRequest,
    ModelNotFound,
    NodeUnavailable,
    NotFound,
    ShuttingDown,
)
from cortex_core.fleet.discovery import ModelState
from cortex_gateway.errands import Errand
from cortex_gateway.intake import read_body
from cortex_gateway.routes.answers import answer
from cortex_gateway.routes.explain import explain_placement, explain_request
from cortex_gateway.upstream import NETWORK_ERRORS, fault_of

if TYPE_CHECKING:
    from cortex_gateway.app import Gateway

__all__ = ["ROUTES"]

MAX_BODY_BYTES = 1024 * 1024

PLACE = frozenset({"model", "node", "device", "wait"})
"""What of a load is not the model's options."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class _Load(LoadOptions, frozen=True, kw_only=True):
    """`wait`: answer when the model is ready, or the load has failed."""

    model: Name
    node: Name | None = None
    device: Name | None = None
    wait: bool = False
    source: str | None = None
    sampling: SamplingDefaults | None = None


class _Unload(msgspec.Struct, frozen=True):
    model: Name
    node: Name | None = None
    wait: bool = False
    force: bool = False


class _Model(msgspec.Struct, frozen=True):
    model: Name


async def show_fleet(request: Request) -> Response:
    """Every node: name, endpoint, whether and why not reachable, requests in flight, last state."""
    gateway: Gateway = request.app.state.gateway
    conductor = gateway.fleet.conductor
    topology = conductor.topology
    nodes = [
        FleetNode(
            neuron.name,
            neuron.endpoint,
            topology.is_reachable(neuron.name),
            topology.cause(neuron.name) or None,
            conductor.in_flight(neuron.name),
            neuron.name in conductor.drained,
            topology.state(neuron.name),
        )
        for neuron in gateway.upstream.neurons.values()
    ]
    return answer(
        FleetView(
            nodes,
            cortex_gateway.__version__,
            conductor.waiting,
            sorted(conductor.pins),
        )
    )


async def load_model(request: Request) -> Response:
    """`{model, node?, device?, wait?, …}`, the rest being load options. Without `node` the model
    goes where placement says; a `device` is its node's affair."""
    gateway: Gateway = request.app.state.gateway
    asked = await _read(request, _Load)
    if asked.node is not None:
        _check_node(gateway, asked.node)
    model = gateway.fleet.conductor.catalogue.resolve(asked.model)
    if asked.device is not None:
        node = asked.node or _only_reachable(gateway)
        place = {"model": model, "device": asked.device, "wait": asked.wait}
        return await _hand_on(request, node, "POST", "/models/load", _options_of(asked) | place)
    options = _options_of(asked)
    _check_options(gateway, model, asked.node, options)
    return await _answer_errand(gateway.errands.load(model, asked.node, options), asked.wait)


async def unload_model(request: Request) -> Response:
    """`{model, node?, wait?, force?}`; without `node` the model must be on exactly one node."""
    gateway: Gateway = request.app.state.gateway
    asked = await _read(request, _Unload)
    if asked.node is not None:
        _check_node(gateway, asked.node)
    model = gateway.fleet.conductor.catalogue.resolve(asked.model)
    node = asked.node or _only_holder(gateway, model)
    if asked.force:
        order = {"model": model, "force": True, "wait": asked.wait}
        return await _hand_on(request, node, "POST", "/models/unload", order)
    return await _answer_errand(gateway.errands.unload(model, node), asked.wait)


async def show_errand(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return answer(gateway.errands.find(request.path_params["operation"]).report())


async def show_operation(request: Request) -> Response:
    """An operation of a neuron's own."""
    node = _check_node(request.app.state.gateway, request.path_params["node"])
    path = "/operations/" + quote(request.path_params["operation"], safe="")
    return await _hand_on(request, node, "GET", path, None)


async def drain_node(request: Request) -> Response:
    return await _drain(request, is_draining=True)


async def undrain_node(request: Request) -> Response:
    return await _drain(request, is_draining=False)


async def pin_model(request: Request) -> Response:
    return await _pin(request, is_pinned=True)


async def unpin_model(request: Request) -> Response:
    return await _pin(request, is_pinned=False)


async def reload(request: Request) -> Response:
    _refuse_when_stopping(request)
    return answer(Reloaded(await request.app.state.gateway.reload()))


async def _drain(request: Request, *, is_draining: bool) -> Response:
    """This gateway sends the node nothing new, also after a restart if that is `kept`; the node,
    where it can be told, refuses what other gateways send."""
    _refuse_when_stopping(request)
    gateway: Gateway = request.app.state.gateway
    node = _check_node(gateway, request.path_params["node"])
    is_kept = await gateway.keeping.drain(node, is_draining)
    told: str | None = None
    try:
        reply = await _hand_on(request, node, "POST", "/drain" if is_draining else "/undrain", {})
        if reply.status_code >= 400:
            told = f"the node answered HTTP {reply.status_code}"
    except CortexError as error:
        told = error.message
    return answer({"node": node, "drained": is_draining, "kept": is_kept, "not_told": told})


async def _pin(request: Request, *, is_pinned: bool) -> Response:
    gateway: Gateway = request.app.state.gateway
    asked = await _read(request, _Model)
    await gateway.fleet.first_contact()
    model = gateway.fleet.known(asked.model)
    if model is None:
        raise _unknown(gateway, asked.model)
    is_kept = await gateway.keeping.pin(model, is_pinned)
    return answer({"model": model, "pinned": is_pinned, "kept": is_kept})


# reading


T = TypeVar("T", bound=msgspec.Struct)


async def _read(request: Request, kind: type[T]) -> T:
    _refuse_when_stopping(request)
    body = await read_body(request.receive, request.scope["headers"], MAX_BODY_BYTES)
    return decode_request(body, kind)[0]


def _refuse_when_stopping(request: Request) -> None:
    if request.app.state.gateway.admission.is_draining:
        raise ShuttingDown("the gateway is shutting down; try again shortly")


def _options_of(asked: _Load) -> dict[str, Any]:
    given = _given(msgspec.to_builtins(asked))
    if "sampling" in given:
        given["sampling"] = _given(given["sampling"])
    return {name: value for name, value in given.items() if name not in PLACE}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _check_options(gateway: Gateway, model: str, node: str | None, options: dict[str, Any]) -> None:
    """A model that is there already keeps the options it was loaded with. Raises Conflict."""
    for location in gateway.fleet.topology.models().get(model, ()):
        if not location.reachable or node not in (None, location.node):
            continue
        if location.model.phase not in ("loading", "ready", "recovering"):
            continue
        for name, value in options.items():
            if name not in ModelState.__struct_fields__ or getattr(location.model, name) != value:
                raise Conflict(
                    f"{name}: {model!r} is on {location.node} already; unload it first to load it "
                    f"with {value!r}",
                    param=name,
                )


def _check_node(gateway: Gateway, node: str) -> str:
    names = gateway.fleet.topology.names
    if node not in names:
        raise NotFound(
            f"no node is named {node!r}; known nodes: {', '.join(names) or 'none'}", param="node"
        )
    return node


def _only_reachable(gateway: Gateway) -> str:
    topology = gateway.fleet.topology
    nodes = [name for name in topology.names if topology.is_reachable(name)]
    if not nodes:
        raise NodeUnavailable("no neuron is reachable")
    return _only(nodes, "have devices")


def _only_holder(gateway: Gateway, model: str) -> str:
    locations = gateway.fleet.topology.models().get(model, [])
    if not locations:
        raise _unknown(gateway, model)
    return _only(sorted({location.node for location in locations}), "hold it")


def _only(nodes: list[str], claim: str) -> str:
    if len(nodes) > 1:
        raise InvalidRequest(
            f"node: required, because several nodes {claim}: {', '.join(nodes)}", param="node"
        )
    return nodes[0]


def _unknown(gateway: Gateway, model: str) -> ModelNotFound:
    known = ", ".join(sorted(gateway.fleet.models)) or "none"
    return ModelNotFound(f"no node has the model {model!r}; known models: {known}", param="model")


# answering


async def _answer_errand(errand: Errand, wait: bool) -> Response:
    """The order as it stands; a refusal that is known already is raised."""
    if wait or errand.is_over:
        await errand.ended()
    report = errand.report()
    headers = {} if report.node is None else {"x-cortex-node": report.node}
    return answer(report, 202 if report.phase == "running" else 200, headers)


async def _hand_on(
    request: Request, node: str, method: str, path: str, values: dict[str, Any] | None
) -> Response:
    """The neuron's own answer, and the node's name in `x-cortex-node`."""
    gateway: Gateway = request.app.state.gateway
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


Endpoint = Callable[[Request], Awaitable[Response]]


def _guarded(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
    """For whoever has the token, where one is configured."""

    async def guarded(request: Request) -> Response:
        request.app.state.gateway.guard.check(request.method, request.headers)
        return await endpoint(request)

    return Route(path, guarded, methods=[method])


ROUTES = [
    _guarded("/admin/fleet", show_fleet),
    _guarded("/admin/models/load", load_model, "POST"),
    _guarded("/admin/models/unload", unload_model, "POST"),
    _guarded("/admin/models/pin", pin_model, "POST"),
    _guarded("/admin/models/unpin", unpin_model, "POST"),
    _guarded("/admin/nodes/{node}/drain", drain_node, "POST"),
    _guarded("/admin/nodes/{node}/undrain", undrain_node, "POST"),
    _guarded("/admin/operations/{operation}", show_errand),
    _guarded("/admin/operations/{node}/{operation}", show_operation),
    _guarded("/admin/explain/placement", explain_placement),
    _guarded("/admin/explain/request/{request:path}", explain_request),
    _guarded("/admin/reload", reload, "POST"),
]

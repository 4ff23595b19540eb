"""`GET /v1/models` and `GET /v1/models/{id}`: what the fleet serves or could serve, and where; for
Anthropic's clients in their vendor's shape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.config.models import CostSection
from cortex_core.envelopes.anthropic_models import model_info, page_of
from cortex_core.envelopes.models import ListedLimit, ListedModel, ModelList, ModelLocation
from cortex_core.errors import ModelNotFound
from cortex_core.fleet.topology import Location
from cortex_gateway.edge import speaks_anthropic
from cortex_gateway.routes.answers import answer

if TYPE_CHECKING:
    from cortex_gateway.fleet import Fleet

__all__ = ["ROUTES"]

_PAGING = ("after_id", "before_id", "lifecycle", "limit")


async def list_models(request: Request) -> Response:
    fleet: Fleet = request.app.state.gateway.fleet
    await fleet.first_contact()
    locations = fleet.topology.models()
    listed: dict[str, ListedModel] = {}
    for model in fleet.models:
        listed[model] = _listed(fleet, model, locations.get(model, []))
        await asyncio.sleep(0)  # a placement for each node is thought through; streams go on
    for alias, model in fleet.conductor.catalogue.aliases.items():
        if model in listed:
            listed[alias] = msgspec.structs.replace(listed[model], id=alias, alias_of=model)
    models = [listed[name] for name in sorted(listed)]
    query = request.query_params
    if not speaks_anthropic(request.scope):
        return answer(ModelList(models), headers=_ignored(query, (*_PAGING, "workspace_id")))
    page = page_of(
        models,
        limit=query.get("limit"),
        after_id=query.get("after_id"),
        before_id=query.get("before_id"),
        lifecycle=query.getlist("lifecycle") + query.getlist("lifecycle[]"),
    )
    return answer(page, headers=_ignored(query, ("workspace_id",)))


async def get_model(request: Request) -> Response:
    fleet: Fleet = request.app.state.gateway.fleet
    await fleet.first_contact()
    name = request.path_params["model"]
    model = fleet.known(name)
    if model is None:
        known = ", ".join(sorted(fleet.models)) or "none"
        raise ModelNotFound(f"no node has the model {name!r}; known models: {known}")
    found = _listed(fleet, model, fleet.topology.models().get(model, []))
    if name != model:
        found = msgspec.structs.replace(found, id=name, alias_of=model)
    return answer(model_info(found) if speaks_anthropic(request.scope) else found)


def _ignored(query: QueryParams, names: Iterable[str]) -> dict[str, str]:
    """Which of these the client has asked for in vain; OpenAI's list is never cut into pages."""
    given = [name for name in names if name in query]
    return {"x-cortex-ignored": ", ".join(given)} if given else {}


def _listed(fleet: Fleet, model: str, locations: list[Location]) -> ListedModel:
    """A model whose nodes are all lost stays in the list, as unreachable; its context is what the
    operator says, else the largest that any location offers."""
    conductor = fleet.conductor
    catalogue = conductor.catalogue
    entry = catalogue.entry(model)
    feasible = conductor.feasible_on(model, time.monotonic())
    context = entry.limit.context or max((x.model.context for x in locations), default=0)
    return ListedModel(
        id=model,
        loaded=any(x.reachable and x.model.phase == "ready" for x in locations),
        locations=[
            ModelLocation(
                x.node,
                x.model.device,
                x.model.phase if x.reachable else "unreachable",
                x.model.memory_bytes,
            )
            for x in locations
        ],
        limit=ListedLimit(context, entry.limit.output),
        feasible_on=feasible,
        capabilities=list(entry.capabilities),
        cost=None if entry.cost == CostSection() else entry.cost,
        load_estimate_s=min(
            (conductor.ledger.reload_s(model, node) for node in feasible), default=None
        ),
        aliases=sorted(alias for alias, of in catalogue.aliases.items() if of == model),
    )


ROUTES = [
    Route("/v1/models", list_models),
    Route("/v1/models/{model:path}", get_model),
]

"""`GET /v1/models` and `GET /v1/models/{id}`: what the fleet serves, and where it is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.envelopes.models import ListedLimit, ListedModel, ModelList, ModelLocation
from cortex_core.errors import ModelNotFound
from cortex_core.fleet.topology import Location
from cortex_gateway.routes.answers import answer

__all__ = ["ROUTES", "entry_of"]


def entry_of(model: str, locations: list[Location]) -> ListedModel:
    """`loaded` means: ready on a node that can be reached. A model whose nodes are all lost stays
    in the list, as unreachable; its context is the largest that any location offers."""
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
        limit=ListedLimit(max(x.model.context for x in locations)),
    )


async def list_models(request: Request) -> Response:
    fleet = request.app.state.gateway.fleet
    await fleet.first_contact()
    models = fleet.topology.models()
    return answer(ModelList([entry_of(model, found) for model, found in models.items()]))


async def get_model(request: Request) -> Response:
    fleet = request.app.state.gateway.fleet
    await fleet.first_contact()
    model = request.path_params["model"]
    models = fleet.topology.models()
    if model not in models:
        known = ", ".join(models) or "none"
        raise ModelNotFound(f"no node has the model {model!r}; known models: {known}")
    return answer(entry_of(model, models[model]))


ROUTES = [
    Route("/v1/models", list_models),
    Route("/v1/models/{model:path}", get_model),
]

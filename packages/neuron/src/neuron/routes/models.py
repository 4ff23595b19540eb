"""Load and unload models, and ask what a load would take."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.config.loading import LoadOptions, SamplingDefaults
from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.parameters import decode_request
from neuron.answers import json_answer, operation_answer
from neuron.models.options import wanted_of
from neuron.models.registry import Registry

__all__ = ["routes"]

ModelId = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class EstimateRequest(LoadOptions, frozen=True, kw_only=True):
    """A load that is only thought of. `source`: the hub to take the model from."""

    model: ModelId
    device: str | None = None
    source: str | None = None


class LoadRequest(EstimateRequest, frozen=True, kw_only=True):
    """`wait`: answer when the model is ready or has failed, not at once with 202. `if_holdings`:
    only while the node's `holdings` are these. `sampling`: what requests get unasked."""

    wait: bool = False
    if_holdings: int | None = None
    sampling: SamplingDefaults | None = None


class UnloadRequest(msgspec.Struct, frozen=True):
    """`force`: end running requests with an error, instead of waiting for them. `if_idle`: only
    when there are none. `if_holdings`: as for a load."""

    model: ModelId
    wait: bool = False
    force: bool = False
    if_holdings: int | None = None
    if_idle: bool = False


def routes(registry: Registry, config: NeuronConfig) -> list[Route]:
    async def load(request: Request) -> Response:
        asked, _ = decode_request(await request.body(), LoadRequest)
        record = await registry.load(asked.model, wanted_of(asked), asked.if_holdings)
        return await operation_answer(record, asked.wait)

    async def estimate(request: Request) -> Response:
        asked, _ = decode_request(await request.body(), EstimateRequest)
        return json_answer(await registry.estimate(asked.model, wanted_of(asked)))

    async def unload(request: Request) -> Response:
        asked, _ = decode_request(await request.body(), UnloadRequest)
        record = registry.unload(
            asked.model, asked.force, if_holdings=asked.if_holdings, if_idle=asked.if_idle
        )
        return await operation_answer(record, asked.wait)

    async def show_known(request: Request) -> Response:
        return json_answer({"models": await registry.known()})

    return [
        Route("/models/known", show_known),
        Route("/models/load", load, methods=["POST"]),
        Route("/models/unload", unload, methods=["POST"]),
        Route("/models/estimate", estimate, methods=["POST"]),
    ]

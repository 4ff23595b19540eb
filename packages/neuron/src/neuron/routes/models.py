"""Load and unload models, and ask what a load would take."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.config.loading import LoadOptions
from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.parameters import decode_request
from neuron.answers import json_answer, operation_answer
from neuron.models.options import wanted_of
from neuron.models.registry import Registry

__all__ = ["routes"]

ModelId = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class EstimateRequest(LoadOptions, frozen=True, kw_only=True):
    """A load that is only thought of."""

    model: ModelId
    device: str | None = None


class LoadRequest(LoadOptions, frozen=True, kw_only=True):
    """`wait`: answer when the model is ready or has failed, not at once with 202."""

    model: ModelId
    device: str | None = None
    wait: bool = False


class UnloadRequest(msgspec.Struct, frozen=True):
    """`force`: end running requests with an error, instead of waiting for them."""

    model: ModelId
    wait: bool = False
    force: bool = False


def routes(registry: Registry, config: NeuronConfig) -> list[Route]:
    async def load(request: Request) -> Response:
        asked, _ = decode_request(await request.body(), LoadRequest)
        return await operation_answer(
            await registry.load(asked.model, wanted_of(asked)), asked.wait
        )

    async def estimate(request: Request) -> Response:
        asked, _ = decode_request(await request.body(), EstimateRequest)
        return json_answer(await registry.estimate(asked.model, wanted_of(asked)))

    async def unload(request: Request) -> Response:
        asked, _ = decode_request(await request.body(), UnloadRequest)
        return await operation_answer(registry.unload(asked.model, asked.force), asked.wait)

    return [
        Route("/models/load", load, methods=["POST"]),
        Route("/models/unload", unload, methods=["POST"]),
        Route("/models/estimate", estimate, methods=["POST"]),
    ]

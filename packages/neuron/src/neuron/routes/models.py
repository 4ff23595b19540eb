"""Load and unload models."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.parameters import decode_request
from neuron.answers import json_answer
from neuron.models.operations import OperationRecord
from neuron.models.registry import Registry, Wanted

__all__ = ["routes"]

ModelId = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class LoadRequest(msgspec.Struct, frozen=True):
    """`wait`: answer when the model is ready or has failed, not at once with 202."""

    model: ModelId
    device: str | None = None
    context: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    parallel: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    wait: bool = False


class UnloadRequest(msgspec.Struct, frozen=True):
    """`force`: end running requests with an error, instead of waiting for them."""

    model: ModelId
    wait: bool = False
    force: bool = False


def routes(registry: Registry, config: NeuronConfig) -> list[Route]:
    async def load(request: Request) -> Response:
        asked, _ = decode_request(await request.body(), LoadRequest)
        wanted = Wanted(asked.device, asked.context, asked.parallel)
        return await _answer(await registry.load(asked.model, wanted), asked.wait)

    async def unload(request: Request) -> Response:
        asked, _ = decode_request(await request.body(), UnloadRequest)
        return await _answer(registry.unload(asked.model, asked.force), asked.wait)

    return [
        Route("/models/load", load, methods=["POST"]),
        Route("/models/unload", unload, methods=["POST"]),
    ]


async def _answer(record: OperationRecord, wait: bool) -> Response:
    """The operation: 200 when it is over (or raise its error), 202 while it runs. A client that
    leaves while waiting changes nothing: the operation goes on."""
    if wait:
        await record.ended()
    status = 202 if record.is_running else 200
    return json_answer(record.report(), status, {"location": f"/operations/{record.id}"})

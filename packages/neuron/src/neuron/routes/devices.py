"""`POST /devices/{device}/restart`: a new worker process for a device, as planned."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.parameters import decode_request
from neuron.answers import operation_answer
from neuron.models.registry import Registry

__all__ = ["routes"]


class RestartRequest(msgspec.Struct, frozen=True):
    """`wait`: answer when the new worker has all the models, not at once with 202."""

    wait: bool = False


def routes(registry: Registry, config: NeuronConfig) -> list[Route]:
    async def restart(request: Request) -> Response:
        asked, _ = decode_request(await request.body() or b"{}", RestartRequest)
        record = registry.restart(request.path_params["device"], config.drain_s)
        return await operation_answer(record, asked.wait)

    return [Route("/devices/{device}/restart", restart, methods=["POST"])]

"""The node itself: what it is, whether it is well, what it holds, and every change of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

import neuron
from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.parameters import decode_request
from cortex_core.wire import sse
from neuron.answers import json_answer
from neuron.models.registry import Registry

__all__ = ["BEAT_S", "routes"]

BEAT_S = 2.0
_BEAT = b": beat\n\n"


class NoParameters(msgspec.Struct, frozen=True):
    """A request that says everything by its path."""


def routes(registry: Registry, config: NeuronConfig) -> list[Route]:
    async def show_version(request: Request) -> Response:
        return json_answer(
            {
                "name": registry.name,
                "boot": registry.boot,
                "neuron": neuron.__version__,
                "llama_cpp_python": _installed("llama-cpp-python"),
            }
        )

    async def show_health(request: Request) -> Response:
        """503 tells a balancer to go elsewhere; the body tells a person why."""
        failures = registry.failures
        if registry.is_draining:
            return json_answer({"status": "draining", "in_flight": registry.in_flight}, 503)
        if registry.is_failed:
            return json_answer({"status": "failed", "devices": failures}, 503)
        return json_answer({"status": "ok", "failed_devices": failures} if failures else _OK)

    async def drain(request: Request) -> Response:
        return await set_drained(request, True)

    async def undrain(request: Request) -> Response:
        return await set_drained(request, False)

    async def set_drained(request: Request, is_drained: bool) -> Response:
        decode_request(await request.body() or b"{}", NoParameters)
        registry.set_drained(is_drained)
        return json_answer({"draining": registry.is_draining, "in_flight": registry.in_flight})

    async def show_state(request: Request) -> Response:
        return json_answer(registry.state())

    async def list_models(request: Request) -> Response:
        return json_answer({"models": registry.state().models})

    async def show_operation(request: Request) -> Response:
        return json_answer(registry.operation(request.path_params["id"]).report())

    async def follow(request: Request) -> Response:
        return StreamingResponse(
            _events(registry),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    return [
        Route("/version", show_version),
        Route("/health", show_health),
        Route("/discovery", show_state),
        Route("/models", list_models),
        Route("/events", follow),
        Route("/operations/{id}", show_operation),
        Route("/drain", drain, methods=["POST"]),
        Route("/undrain", undrain, methods=["POST"]),
    ]


_OK = {"status": "ok"}


async def _events(registry: Registry) -> AsyncIterator[bytes]:
    """The whole state at once and after each change; a comment after each BEAT_S of silence."""
    feed = registry.feed
    seen = 0
    while True:
        try:
            async with asyncio.timeout(BEAT_S):
                state = await feed.beyond(seen)
        except TimeoutError:
            yield _BEAT
            continue
        if state is None:
            return
        seen = state.version
        yield sse.encode(feed.encoded, event="state", event_id=str(seen))


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None

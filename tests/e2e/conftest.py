"""A gateway and a neuron with cortex/tiny, shared by the tests that leave both unharmed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from tests.e2e.client import TINY, eventually, fetch
from tests.processes import Daemon, start_gateway, start_neuron

PARALLEL = 16


@dataclass(frozen=True)
class Stack:
    """One gateway over one neuron. `url` is the gateway's."""

    gateway: Daemon
    neuron: Daemon

    @property
    def url(self) -> str:
        return self.gateway.url

    async def is_servable(self, model: str = TINY) -> bool:
        """Whether the gateway would route to `model` now."""
        try:
            answer = await fetch("GET", f"{self.url}/v1/models")
        except aiohttp.ClientError:
            return False
        return any(
            place["state"] == "ready"
            for entry in answer.body["data"]
            if entry["id"] == model
            for place in entry["locations"]
        )

    async def running(self, model: str = TINY) -> int:
        """Sequences that the neuron runs for `model` now."""
        answer = await fetch("GET", f"{self.neuron.url}/models")
        return sum(m.get("running", 0) for m in answer.body["models"] if m["id"] == model)


def gateway_config(*neurons: str, drain_s: float = 30) -> str:
    """A cortex.toml on free ports for neurons at these endpoints, named n0, n1, …"""
    text = (
        f'[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\ndrain_s = {drain_s}\n'
    )
    for index, endpoint in enumerate(neurons):
        text += f'[[neurons]]\nname = "n{index}"\nendpoint = "{endpoint}"\n'
    return text


@contextmanager
def start_stack(
    *flags: str, models: tuple[str, ...] = (TINY,), config: str = ""
) -> Iterator[Stack]:
    """Gateway and neuron; their models may still be loading."""
    engine = f"{config}\n[engine]\nparallel = {PARALLEL}\n"
    with (
        start_neuron(*flags, models=models, config=engine) as neuron,
        start_gateway(gateway_config(neuron.url)) as gateway,
    ):
        yield Stack(gateway, neuron)


@contextmanager
def _ready_stack() -> Iterator[Stack]:
    with start_stack() as stack:
        asyncio.run(eventually(stack.is_servable, "cortex/tiny is servable"))
        yield stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with _ready_stack() as stack:
        yield stack


@pytest.fixture
def own_stack() -> Iterator[Stack]:
    """For tests that kill or stop things."""
    with _ready_stack() as stack:
        yield stack

"""Following a neuron survives whatever following it can raise."""

from __future__ import annotations

import pytest

from cortex_core.config.gateway import GatewayConfig, NeuronEntry
from cortex_gateway.app import Gateway
from tests.fleet.conftest import eventually


@pytest.mark.parametrize(
    ("endpoint", "cause"),
    [
        (f"http://{'a' * 64}.example:1", "label"),
        ("http://h:99999", "port"),
    ],
)
async def test_an_address_that_cannot_be_asked_is_a_cause_and_no_silence(
    endpoint: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No configuration that is checked has one; whoever makes one finds out."""
    async with Gateway(GatewayConfig(neurons=[NeuronEntry("a", endpoint)])) as gateway:

        async def is_lost() -> bool:
            return cause in gateway.fleet.topology.cause("a").lower()

        await eventually(is_lost)
        assert '"node lost" node=a' in caplog.text

"""What the tests of one neuron share. Each module has its own `neuron`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.e2e.neuron.client import Client, connect
from tests.processes import Daemon


@pytest.fixture
async def client(neuron: Daemon) -> AsyncIterator[Client]:
    async with connect(neuron.url) as client:
        await client.until_ready()
        yield client

"""A gateway process in front of scripted neurons, and ways to ask it without sleeping."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
import pytest
import pytest_asyncio

from tests.fleet.scripted_neuron import ScriptedNeuron
from tests.processes import Daemon, clean_environment

T = TypeVar("T")


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Rig:
    """One gateway, its neurons, and a client."""

    def __init__(
        self, daemon: Daemon, neurons: dict[str, ScriptedNeuron], client: aiohttp.ClientSession
    ) -> None:
        self.daemon = daemon
        self.neurons = neurons
        self.client = client
        self.url = daemon.urls["gateway"]
        self.metrics_url = daemon.urls["metrics"]

    @property
    def a(self) -> ScriptedNeuron:
        return self.neurons["a"]

    @property
    def b(self) -> ScriptedNeuron:
        return self.neurons["b"]

    async def ask(self, method: str, path: str, body: Any = None, **kwargs: Any) -> Reply:
        if body is not None and not isinstance(body, bytes):
            kwargs["json"] = body
        elif body is not None:
            kwargs["data"] = body
        async with self.client.request(method, self.url + path, **kwargs) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, headers, await response.read())

    async def chat(self, model: str = "m", headers: dict[str, str] | None = None, **fields: Any):
        """A chat request; returns its Reply."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | fields
        return await self.ask("POST", "/v1/chat/completions", body, headers=headers)

    async def fleet(self) -> dict[str, dict[str, Any]]:
        """What /admin/fleet says, by node."""
        async with self.client.get(self.url + "/admin/fleet") as response:
            return {node["name"]: node for node in (await response.json())["nodes"]}

    async def until_reachable(self, node: str, is_reachable: bool = True) -> None:
        await eventually(lambda: self._is(node, lambda n: n["reachable"] is is_reachable))

    async def until_refused(self, node: str) -> None:
        """Until the gateway has found nobody listening where `node` was."""
        await eventually(lambda: self._is(node, lambda n: n["cause"] == "connection refused"))

    async def until_version(self, node: str, version: int) -> None:
        await eventually(
            lambda: self._is(node, lambda n: n["reachable"] and n["state"]["version"] == version)
        )

    async def until_in_flight(self, node: str, count: int) -> None:
        await eventually(lambda: self._is(node, lambda n: n["in_flight"] == count))

    async def until_waiting(self, model: str, count: int) -> None:
        async def is_so() -> bool:
            async with self.client.get(self.url + "/admin/fleet") as response:
                return (await response.json())["waiting"].get(model, 0) == count

        await eventually(is_so)

    def open_files(self) -> int:
        """How many the gateway has, connections among them."""
        return len(list(Path(f"/proc/{self.daemon.pid}/fd").iterdir()))

    async def until_open_files(self, at_most: int) -> None:
        async def are_few() -> bool:
            return self.open_files() <= at_most

        await eventually(are_few)

    async def _is(self, node: str, claim: Callable[[dict[str, Any]], bool]) -> bool:
        return claim((await self.fleet())[node])

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by name and labels as printed."""
        async with self.client.get(self.metrics_url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        pairs = (re.fullmatch(r"([^#].*) (\S+)", line) for line in lines)
        return {match[1]: float(match[2]) for match in pairs if match}

    async def reset(self) -> None:
        """All neurons there and obedient, and the gateway aware of it."""
        for neuron in self.neurons.values():
            await neuron.reset()
        for neuron in self.neurons.values():
            await self.until_version(neuron.name, neuron.state.version)
            await self.until_in_flight(neuron.name, 0)


def config_of(neurons: Sequence[ScriptedNeuron], **settings: Any) -> str:
    """A cortex.toml with free ports for these neurons. `eviction`: the keys of that section; the
    rest is [gateway]'s."""
    eviction = settings.pop("eviction", {})
    given = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"} | settings
    lines = ["[gateway]", *_assignments(given), "[eviction]", *_assignments(eviction)]
    for neuron in neurons:
        lines += ["[[neurons]]", f'name = "{neuron.name}"', f'endpoint = "{neuron.endpoint}"']
        if neuron.token_file is not None:
            lines.append(f'token_file = "{neuron.token_file}"')
    return "\n".join(lines) + "\n"


def _assignments(values: dict[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in values.items()]


def spawn_gateway(config: Path, environment: dict[str, str] | None = None) -> Daemon:
    """A gateway that may be meant not to start. Not waited for."""
    command = [sys.executable, "-m", "cortex_gateway", "--config", str(config)]
    return Daemon("gateway", command, clean_environment(environment))


@asynccontextmanager
async def running_rig(
    folder: Path, neurons: Sequence[ScriptedNeuron], models: str | None = None, **settings: Any
) -> AsyncIterator[Rig]:
    """A gateway in front of `neurons`, which are listening already. `models`: the text of its
    models.toml. settings: see `config_of`."""
    if models is not None:
        (folder / "models.toml").write_text(models, "utf-8")
        settings["models"] = "models.toml"
    config = folder / "cortex.toml"
    config.write_text(config_of(neurons, **settings), "utf-8")
    daemon = spawn_gateway(config)
    try:
        await asyncio.to_thread(daemon.wait_listening, "gateway", "metrics")
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30)
        ) as client:
            yield Rig(daemon, {neuron.name: neuron for neuron in neurons}, client)
    except BaseException as error:
        error.add_note(f"--- log of the gateway\n{daemon.log}")
        raise
    finally:
        await asyncio.to_thread(daemon.stop)


async def eventually(ask: Callable[[], Awaitable[T]], within_s: float = 15.0) -> T:
    """The first true answer to `ask`, which is asked every 10 ms."""
    end = time.monotonic() + within_s
    while not (value := await ask()):
        assert time.monotonic() < end, f"still {value!r} after {within_s} s"
        await asyncio.sleep(0.01)
    return value


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_rig(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Rig]:
    """Nodes a and b, both with the model m; a alone has only/a, b alone has only/b. The test
    module's SETTINGS go into the gateway's configuration."""
    settings = getattr(request.module, "SETTINGS", {})
    async with (
        ScriptedNeuron("a", "m", "only/a") as a,
        ScriptedNeuron("b", "m", "only/b") as b,
        running_rig(tmp_path_factory.mktemp("gateway"), [a, b], **settings) as rig,
    ):
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(module_rig: Rig) -> Rig:
    """The module's rig, as at first."""
    await module_rig.reset()
    return module_rig

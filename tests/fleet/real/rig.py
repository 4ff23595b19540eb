"""Real neurons that can be killed and come back, and a gateway in front of them that keeps a record
of what its conductor was told and said.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from cortex_core.fleet.discovery import NodeState
from tests.fleet.conftest import Rig, eventually
from tests.fleet.real.recorded_gateway import Line
from tests.processes import Daemon, clean_environment, spawn_neuron

__all__ = [
    "MIB",
    "Node",
    "RealRig",
    "chat_body",
    "endpoints_of",
    "real_rig",
    "running_nodes",
]

MIB = 2**20

_LINE = msgspec.json.Decoder(Line)


class Node:
    """One neuron with a single CPU worker that pretends to have `memory_mb`. It has the same port
    in each of its lives."""

    def __init__(self, name: str, memory_mb: int, folder: Path, models: Path) -> None:
        self.name = name
        self.memory_mb = memory_mb
        self.lives: list[Daemon] = []
        self._config = folder / f"{name}.toml"
        self._config.write_text(
            f'name = "{name}"\ndrain_s = 5\n'
            f'[models]\nlocal = ["{models}"]\nsources = []\n'
            f"[devices]\ncpu_workers = 1\nmemory_mb = {memory_mb}\n"
            "[engine]\ncontext = 512\nparallel = 4\nbatch = 256\nthreads = 1\nhost_cache_mb = 8\n"
            "max_waiting = 1000\n",
            "utf-8",
        )
        self._address = "127.0.0.1:0"

    @property
    def daemon(self) -> Daemon:
        return self.lives[-1]

    @property
    def url(self) -> str:
        return self.daemon.url

    async def start(self) -> None:
        flags = ["--listen", self._address, "--config", str(self._config)]
        self.lives.append(spawn_neuron(*flags, "--log-level", "debug"))
        await asyncio.to_thread(self.daemon.wait_listening, "neuron")
        self._address = self.url.removeprefix("http://")

    async def kill(self) -> None:
        """As the out-of-memory killer does."""
        self.daemon.signal(signal.SIGKILL)
        await asyncio.to_thread(self.daemon.wait)

    async def stop(self) -> None:
        await asyncio.to_thread(self.daemon.stop)


class RealRig(Rig):
    """A gateway before real neurons. `record` grows while it runs."""

    def __init__(
        self, daemon: Daemon, client: aiohttp.ClientSession, folder: Path, name: str
    ) -> None:
        super().__init__(daemon, {}, client)
        self.folder = folder
        self.name = name

    @property
    def record(self) -> list[Line]:
        lines = (self.folder / f"{self.name}.record").read_bytes().split(b"\n")
        return [_LINE.decode(line) for line in lines[:-1]]

    async def state(self, node: str) -> NodeState:
        """As the gateway last heard of it."""
        return msgspec.convert((await self.fleet())[node]["state"], NodeState)

    async def worker_pid(self, node: str) -> int | None:
        return (await self.state(node)).devices[0].worker.pid

    async def until_state(self, node: str, model: str, phase: str | None) -> None:
        """Until a model is in that phase there; None = gone."""

        async def is_so() -> bool:
            known = (await self.fleet())[node]
            phases = {m["id"]: m["phase"] for m in known["state"]["models"]}
            return known["reachable"] and phases.get(model) == phase

        await eventually(is_so)

    async def load(self, model: str, node: str) -> None:
        order = {"model": model, "node": node, "wait": True}
        reply = await self.ask("POST", "/admin/models/load", order)
        assert reply.status == 200, reply.body

    def configure(self, models: str, endpoints: Mapping[str, str], **settings: Any) -> None:
        """Write what the gateway reads at its next reload."""
        _configure(self.folder, self.name, models, endpoints, settings)

    async def reload(self) -> list[str]:
        reply = await self.ask("POST", "/admin/reload")
        assert reply.status == 200, reply.body
        return json.loads(reply.body)["changed"]


def _configure(
    folder: Path,
    name: str,
    models: str,
    endpoints: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Path:
    """`eviction`: the keys of that section; the rest is [gateway]'s."""
    (folder / f"{name}.models.toml").write_text(models, "utf-8")
    given = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "models": f"{name}.models.toml",
    } | {key: value for key, value in settings.items() if key != "eviction"}
    sections = {"gateway": given, "eviction": settings.get("eviction", {})}
    lines: list[str] = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
    for node, endpoint in endpoints.items():
        lines += ["[[neurons]]", f'name = "{node}"', f'endpoint = "{endpoint}"']
    config = folder / f"{name}.toml"
    config.write_text("\n".join(lines) + "\n", "utf-8")
    return config


@asynccontextmanager
async def running_nodes(folder: Path, models: Path, *memory_mb: int) -> AsyncIterator[list[Node]]:
    """Neurons n0, n1, … with so much memory each, listening."""
    nodes = [Node(f"n{i}", size, folder, models) for i, size in enumerate(memory_mb)]
    async with AsyncExitStack() as exits:
        for node in nodes:
            exits.push_async_callback(_end, node)
        await asyncio.gather(*(node.start() for node in nodes))
        try:
            yield nodes
        except BaseException as error:
            for node in nodes:
                error.add_note(f"--- log of {node.name}\n{node.daemon.log[-20_000:]}")
            raise


async def _end(node: Node) -> None:
    if node.lives:
        if node.daemon.process.poll() is None:
            node.daemon.signal(signal.SIGCONT)
        await node.stop()


@asynccontextmanager
async def real_rig(
    folder: Path,
    models: str,
    endpoints: Mapping[str, str],
    name: str = "gateway",
    **settings: Any,
) -> AsyncIterator[RealRig]:
    """A gateway that has heard of every node. models: the text of its models.toml."""
    config = _configure(folder, name, models, endpoints, settings)
    command = [sys.executable, "-m", "tests.fleet.real.recorded_gateway", "--config", str(config)]
    command += ["--record", str(folder / f"{name}.record")]
    here = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    daemon = Daemon("gateway", command, clean_environment(here))
    try:
        await asyncio.to_thread(daemon.wait_listening, "gateway", "metrics")
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
            rig = RealRig(daemon, client, folder, name)
            for node in endpoints:
                await rig.until_reachable(node)
            yield rig
    except BaseException as error:
        error.add_note(f"--- log of {name}\n{daemon.log[-20_000:]}")
        raise
    finally:
        await asyncio.to_thread(daemon.stop)


def chat_body(model: str, tokens: int, *, stream: bool = False, text: str = "hi") -> dict[str, Any]:
    """A chat whose answer is exactly so many tokens long."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": stream,
    }


def endpoints_of(nodes: Sequence[Node]) -> dict[str, str]:
    return {node.name: node.url for node in nodes}

"""Hundreds of requests wait for a model that is being loaded: how long do probes take?"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path
from statistics import quantiles

import aiohttp
from rich.table import Table

from tests.bench.engine.rounds import new_table
from tests.fleet.real.models import catalogue, make_models
from tests.fleet.real.rig import RealRig, chat_body, endpoints_of, real_rig, running_nodes
from tests.fleet.real.traffic import CHAT

__all__ = ["measure"]

CROWD = 500
PROBES = 400


async def measure() -> Table:
    table = new_table(
        f"{CROWD} streaming requests parked, {PROBES} probes each", "path", "p50 ms", "p99 ms"
    )
    with tempfile.TemporaryDirectory(prefix="bench-parked-") as scratch:
        folder = Path(scratch)
        async with (
            running_nodes(folder, make_models(folder), 40) as nodes,
            real_rig(folder, catalogue(), endpoints_of(nodes), max_waiting=CROWD) as rig,
        ):
            pid = await rig.worker_pid("n0")
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            try:
                crowd = [asyncio.create_task(_wait(rig)) for _ in range(CROWD)]
                await rig.until_waiting("l.gguf", CROWD)
                for path in ("/health", "/v1/models"):
                    times = [await _probe(rig, path) for _ in range(PROBES)]
                    marks = quantiles(times, n=100)
                    table.add_row(path, f"{1e3 * marks[49]:.1f}", f"{1e3 * marks[98]:.1f}")
                for task in crowd:
                    task.cancel()
                await asyncio.wait(crowd)
            finally:
                os.kill(pid, signal.SIGCONT)
    return table


async def _wait(rig: RealRig) -> None:
    body = chat_body("l.gguf", 1, stream=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with rig.client.post(rig.url + CHAT, json=body, timeout=timeout) as response:
        await response.read()


async def _probe(rig: RealRig, path: str) -> float:
    began = time.perf_counter()
    async with rig.client.get(rig.url + path) as response:
        await response.read()
        assert response.status == 200
    took_s = time.perf_counter() - began
    await asyncio.sleep(0.005)  # for what else the gateway has to do
    return took_s

"""The two servers under test behind one face: start, stream N answers at once, stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["LlamaServer", "Neuron", "Stream", "resident_bytes", "run_streams"]

START_TIMEOUT_S = 120


@dataclass
class Stream:
    """One answer as its client saw it. Times in seconds since the run began."""

    first_s: float
    end_s: float
    prompt_tokens: int
    tokens: int


class Neuron:
    """Ours, as an operator runs it: parent process, worker process, HTTP."""

    name = "neuron"

    def __init__(self, model: Path, parallel: int, context: int, threads: int) -> None:
        self.model = model
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            sys.executable, "-m", "neuron", "--listen", f"127.0.0.1:{port}",
            "--cpu-workers", "1", "--model", str(model), "--log-level", "warning",
        ]  # fmt: skip
        self._environment = {
            "NEURON_ENGINE__PARALLEL": str(parallel),
            "NEURON_ENGINE__CONTEXT": str(context),
            "NEURON_ENGINE__THREADS": str(threads),
        }
        self.pids: list[int] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Neuron]:
        with _process(self._command, self._environment) as process:
            await _until(self._is_ready, process)
            self.pids = [process.pid, *_children(process.pid)]
            yield self

    async def _is_ready(self) -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/models") as answer:
            models = (await answer.json())["models"]
            return bool(models) and all(model["phase"] == "ready" for model in models)

    def request(self, prompt: str, tokens: int, sampling: dict[str, Any]) -> tuple[str, dict]:
        return "/v1/chat/completions", {
            "model": str(self.model),
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": tokens,
            "ignore_eos": True,
            **sampling,
        }

    def counts(self, event: dict[str, Any]) -> tuple[int, int] | None:
        usage = event.get("usage")
        return (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None


class LlamaServer:
    """The peer, through its cheapest endpoint: no chat parsing on its side."""

    name = "llama-server"

    def __init__(
        self, binary: Path, model: Path, parallel: int, context: int, threads: int
    ) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(port),
            "-np", str(parallel), "-c", str(context * parallel), "-t", str(threads),
            "-tb", str(threads), "--log-disable",
        ]  # fmt: skip
        self.pids: list[int] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LlamaServer]:
        with _process(self._command, {}) as process:
            await _until(self._is_ready, process)
            self.pids = [process.pid]
            yield self

    async def _is_ready(self) -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/health") as answer:
            return answer.status == 200

    def request(self, prompt: str, tokens: int, sampling: dict[str, Any]) -> tuple[str, dict]:
        return "/completion", {
            "prompt": f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
            "stream": True,
            "n_predict": tokens,
            "ignore_eos": True,
            **sampling,
        }

    def counts(self, event: dict[str, Any]) -> tuple[int, int] | None:
        if not event.get("stop"):
            return None
        return event["tokens_evaluated"], event["tokens_predicted"]


async def run_streams(
    server: Neuron | LlamaServer, prompts: list[str], tokens: int, sampling: dict[str, Any]
) -> list[Stream]:
    """Send every prompt at once and read all answers to their end."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        begin = time.perf_counter()

        async def one(prompt: str) -> Stream:
            path, body = server.request(prompt, tokens, sampling)
            async with session.post(server.url + path, json=body) as answer:
                if answer.status != 200:
                    raise SystemExit(f"{server.name}: {answer.status} {await answer.text()}")
                first, tail = 0.0, b""
                async for chunk in answer.content.iter_any():
                    first = first or time.perf_counter() - begin
                    tail = (tail + chunk)[-4096:]
            end = time.perf_counter() - begin
            prompt_tokens, completion = _last_counts(server, tail)
            return Stream(first, end, prompt_tokens, completion)

        return await asyncio.gather(*(one(prompt) for prompt in prompts))


def _last_counts(server: Neuron | LlamaServer, tail: bytes) -> tuple[int, int]:
    for line in reversed(tail.split(b"\n")):
        if line.startswith(b"data: {"):
            try:
                counts = server.counts(json.loads(line[6:]))
            except ValueError:
                continue
            if counts:
                return counts
    raise SystemExit(f"{server.name}: the stream ended without its usage: {tail[-300:]!r}")


def resident_bytes(pids: list[int]) -> int:
    """Resident memory of the processes together."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield process
        except SystemExit as failure:
            log.seek(0)
            raise SystemExit(f"{failure}\n{log.read()[-3000:].decode(errors='replace')}") from None
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _until(is_ready: Callable[[], Awaitable[bool]], process: subprocess.Popen[bytes]) -> None:
    """Poll a foreign server, which offers no event to wait for."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} exited with {process.returncode}")
        with contextlib.suppress(aiohttp.ClientError, OSError):
            if await is_ready():
                return
        await asyncio.sleep(0.1)
    raise SystemExit(f"{process.args} was not ready within {START_TIMEOUT_S} s")


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

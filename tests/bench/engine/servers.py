"""The servers under test behind one face: start, what a request looks like, stop."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import aiohttp

from tests.bench.engine.prompts import Conversation, chatml
from tests.bench.processes import family, free_port, running

__all__ = [
    "Counts",
    "Layout",
    "LlamaServer",
    "Neuron",
    "Router",
    "Server",
    "ServerFailed",
    "Setup",
]

START_TIMEOUT_S = 120

Layout = Literal["unified", "partitioned"]


class ServerFailed(Exception):
    """A server under test did not start, or did not answer as asked; its log is in the notes."""


@dataclass(frozen=True)
class Setup:
    """How both sides run a model. `context` is tokens per sequence; `cells` is the whole KV cache,
    0 = a context for each sequence. `layout` None = each server's own choice."""

    model: Path
    parallel: int
    context: int
    threads: int
    cells: int = 0
    layout: Layout | None = None


class Counts(NamedTuple):
    prompt_tokens: int
    cached_tokens: int
    tokens: int


class Server(Protocol):
    name: str
    url: str

    @property
    def pids(self) -> list[int]:
        """Of all its processes, as of now."""
        ...

    def running(self) -> contextlib.AbstractAsyncContextManager[Any]: ...

    def request(
        self, conversation: Conversation, tokens: int, sampling: dict[str, Any], model: Path | None
    ) -> tuple[str, dict[str, Any]]:
        """Path and body of a streaming request for exactly so many tokens. `model` None = the one
        it was started with."""
        ...

    def has_text(self, event: dict[str, Any]) -> bool: ...
    def counts(self, event: dict[str, Any]) -> Counts | None:
        """Of a stream's last event that knows them."""
        ...

    async def is_idle(self) -> bool:
        """Whether no request is running or waiting."""
        ...


class _Process:
    """A server that is one process and whatever it starts."""

    name: str
    url: str
    _process: subprocess.Popen[bytes] | None = None

    @property
    def pids(self) -> list[int]:
        return family(self._process.pid) if self._process else []

    @contextlib.asynccontextmanager
    async def _running(
        self,
        command: list[str],
        environment: dict[str, str],
        is_ready: Callable[[], Awaitable[bool]],
    ) -> AsyncIterator[None]:
        with (
            tempfile.TemporaryDirectory(prefix="bench-engine-") as folder,
            running(command, Path(folder, "log"), environment) as self._process,
        ):
            try:
                await _until(is_ready, self._process)
                yield
            finally:
                self._process = None

    async def _get(self, path: str) -> Any:
        """The body, or None where the answer is no 200."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            return await answer.json() if answer.status == 200 else None


class Neuron(_Process):
    """Ours, as an operator runs it: parent process, worker process, HTTP."""

    name = "neuron"

    def __init__(self, setup: Setup, **engine: object) -> None:
        """`engine`: more keys of neuron.toml's [engine]."""
        self.setup = setup
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            sys.executable, "-m", "neuron", "--listen", f"127.0.0.1:{port}",
            "--cpu-workers", "1", "--model", str(setup.model), "--log-level", "warning",
        ]  # fmt: skip
        keys = {
            "parallel": setup.parallel,
            "context": setup.context,
            "threads": setup.threads,
            "step_timeout_s": 3600,  # the benchmark stops whole servers for minutes
        } | engine
        if setup.cells:
            keys["cells"] = setup.cells
        if setup.layout:
            keys["kv"] = setup.layout
        self._environment = {f"NEURON_ENGINE__{k.upper()}": str(v) for k, v in keys.items()}
        self._environment["NEURON_MODELS__LOCAL"] = f'["{setup.model.parent}"]'

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Neuron]:
        async with self._running(self._command, self._environment, self._is_ready):
            yield self

    async def _is_ready(self) -> bool:
        models = (await self._get("/models"))["models"]
        return bool(models) and all(model["phase"] == "ready" for model in models)

    async def is_idle(self) -> bool:
        models = (await self._get("/models"))["models"]
        return not any(model.get("running") or model.get("waiting") for model in models)

    async def post(self, path: str, **body: object) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url + path, json=body) as answer,
        ):
            if answer.status != 200:
                raise ServerFailed(f"{self.name}: {path}: {answer.status} {await answer.text()}")

    def request(
        self, conversation: Conversation, tokens: int, sampling: dict[str, Any], model: Path | None
    ) -> tuple[str, dict[str, Any]]:
        return "/v1/chat/completions", {
            "model": str(model or self.setup.model),
            "messages": conversation,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": tokens,
            "ignore_eos": True,
            **sampling,
        }

    def has_text(self, event: dict[str, Any]) -> bool:
        return any(
            choice["delta"].get("content") or choice["delta"].get("reasoning_content")
            for choice in event.get("choices") or ()
        )

    def counts(self, event: dict[str, Any]) -> Counts | None:
        usage = event.get("usage")
        if not usage:
            return None
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return Counts(usage["prompt_tokens"], cached, usage["completion_tokens"])


class LlamaServer(_Process):
    """The peer, through its cheapest endpoint: no chat parsing on its side."""

    def __init__(self, binary: Path, setup: Setup) -> None:
        self.setup = setup
        self.name = "llama-server" + (f" {setup.layout}" if setup.layout else "")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            str(binary), "--host", "127.0.0.1", "--port", str(port), "--log-disable",
            "-np", str(setup.parallel), "-c", str(setup.cells or setup.context * setup.parallel),
            "-t", str(setup.threads), "-tb", str(setup.threads), *self._what(),
        ]  # fmt: skip
        if setup.layout:
            is_unified = setup.layout == "unified"
            self._command.append("--kv-unified" if is_unified else "--no-kv-unified")

    def _what(self) -> list[str]:
        return ["-m", str(self.setup.model)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LlamaServer]:
        async with self._running(self._command, {}, self._is_ready):
            yield self

    async def _is_ready(self) -> bool:
        return await self._get("/health") is not None

    async def is_idle(self) -> bool:
        return not any(slot["is_processing"] for slot in await self._get("/slots"))

    def request(
        self, conversation: Conversation, tokens: int, sampling: dict[str, Any], model: Path | None
    ) -> tuple[str, dict[str, Any]]:
        return "/completion", {
            "prompt": chatml(conversation),
            "stream": True,
            "n_predict": tokens,
            "ignore_eos": True,
            **sampling,
        }

    def has_text(self, event: dict[str, Any]) -> bool:
        return bool(event.get("content"))

    def counts(self, event: dict[str, Any]) -> Counts | None:
        if not event.get("stop"):
            return None
        cached = event["timings"]["cache_n"]
        return Counts(event["tokens_evaluated"], cached, event["tokens_predicted"])


class Router(LlamaServer):
    """The peer serving a folder of models, one at a time: a process for each, started and stopped
    as requests name them."""

    def __init__(self, binary: Path, setup: Setup) -> None:
        super().__init__(binary, setup)
        self.name = "llama-server router"

    def _what(self) -> list[str]:
        return ["--models-dir", str(self.setup.model.parent), "--models-max", "1"]

    def request(
        self, conversation: Conversation, tokens: int, sampling: dict[str, Any], model: Path | None
    ) -> tuple[str, dict[str, Any]]:
        path, body = super().request(conversation, tokens, sampling, model)
        return path, body | {"model": (model or self.setup.model).stem}


async def _until(is_ready: Callable[[], Awaitable[bool]], process: subprocess.Popen[bytes]) -> None:
    """Poll a foreign server, which offers no event to wait for."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"{process.args} exited with {process.returncode}")
        with contextlib.suppress(aiohttp.ClientError, OSError):
            if await is_ready():
                return
        await asyncio.sleep(0.1)
    raise ServerFailed(f"{process.args} was not ready within {START_TIMEOUT_S} s")

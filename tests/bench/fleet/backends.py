"""Three servers of one model, and the routers that are put before them; each a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import aiohttp

from tests.bench import peers
from tests.bench.peers import CACHE
from tools.make_gguf import PRESETS, make_gguf

__all__ = ["NODES", "ROUTERS", "Backends", "LlamaServers", "Neurons", "Router", "model"]

NODES = 3
PARALLEL = 4
CONTEXT = 2048
START_S = 120


def model() -> Path:
    """Of such a size that a prompt takes its time, and twelve conversations do not take the day."""
    path = CACHE / "models" / "fleet-8x512-Q4_K_M.gguf"
    if not path.exists():
        shape = replace(PRESETS["qwen3-0.6b"], layers=8, width=512, ffn=1536, vocab=32_000)
        path.parent.mkdir(parents=True, exist_ok=True)
        make_gguf(path, shape, file_type="Q4_K_M")
    return path


class Backends(Protocol):
    """`urls` while they run."""

    name: str
    model: str
    urls: list[str]

    def running(self, folder: Path) -> contextlib.AbstractAsyncContextManager[None]: ...


class Neurons:
    name = "neurons"

    def __init__(self) -> None:
        self.model = str(model())
        self.urls: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self, folder: Path) -> AsyncIterator[None]:
        file = model()
        environment = {
            "NEURON_MODELS__LOCAL": f'["{file.parent}"]',
            "NEURON_ENGINE__PARALLEL": str(PARALLEL),
            "NEURON_ENGINE__CONTEXT": str(CONTEXT),
            "NEURON_ENGINE__THREADS": "1",
        }

        def command(port: int) -> list[str]:
            listen = ["--listen", f"127.0.0.1:{port}", "--cpu-workers", "1"]
            return [sys.executable, "-m", "neuron", *listen, "--model", str(file)]

        async with _all_running(command, folder, environment, self.urls, "/models", b'"ready"'):
            yield


class LlamaServers:
    name = "llama-servers"

    def __init__(self) -> None:
        self.model = "m"
        self.urls: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self, folder: Path) -> AsyncIterator[None]:
        binary = str(peers.llama_server())

        def command(port: int) -> list[str]:
            return [
                binary, "--host", "127.0.0.1", "--port", str(port), "-m", str(model()), "--jinja",
                "-np", str(PARALLEL), "-c", str(PARALLEL * CONTEXT), "-t", "1", "-tb", "1",
            ]  # fmt: skip

        async with _all_running(command, folder, {}, self.urls, "/health", b"ok"):
            yield


class Router(Protocol):
    def __call__(
        self, urls: Sequence[str], folder: Path
    ) -> contextlib.AbstractAsyncContextManager[str]:
        """Its address, leading to all of these."""
        ...


@contextlib.asynccontextmanager
async def cortex(urls: Sequence[str], folder: Path) -> AsyncIterator[str]:
    port = _free_port()
    text = f'[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:0"\n'
    for index, url in enumerate(urls):
        text += f'[[neurons]]\nname = "n{index}"\nendpoint = "{url}"\n'
    (folder / "cortex.toml").write_text(text, "utf-8")
    command = [sys.executable, "-m", "cortex_gateway", "--config", str(folder / "cortex.toml")]
    async with _running("gateway", command, folder, {}):
        url = f"http://127.0.0.1:{port}"
        await _until(url + "/v1/models", b'"ready"', len(urls))
        yield url


@contextlib.asynccontextmanager
async def nginx(urls: Sequence[str], folder: Path) -> AsyncIterator[str]:
    """Round-robin, as its upstreams are unless told otherwise; one worker, so that there is one
    order."""
    binary = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if binary is None:
        raise LookupError("nginx is not installed (apt-get install nginx-light)")
    port = _free_port()
    servers = " ".join(f"server {url.removeprefix('http://')};" for url in urls)
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;\n"
        "events { worker_connections 1024; }\n"
        "http { access_log off; client_max_body_size 64m;\n"
        + "".join(f"{path}_temp_path {folder};\n" for path in paths)
        + f"upstream nodes {{ {servers} keepalive 32; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://nodes;\n"
        'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;\n'
        "proxy_read_timeout 600s; } } }\n",
        "utf-8",
    )
    command = [binary, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    async with _running("nginx", command, folder, {}):
        url = f"http://127.0.0.1:{port}"
        await _until(url + "/health", b"")
        yield url


@contextlib.asynccontextmanager
async def sglang(urls: Sequence[str], folder: Path) -> AsyncIterator[str]:
    """sglang-router's cache-aware policy with its own defaults, in an environment of its own that
    is made on first use."""
    home = CACHE / "sglang-router"
    if not (home / "bin" / "sglang-router").exists():
        print("installing sglang-router (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "sglang-router"]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    port, metrics = _free_port(), _free_port()
    command = [
        str(home / "bin" / "python"), "-m", "sglang_router.launch_router",
        "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics),
        "--policy", "cache_aware", "--worker-urls", *urls,
    ]  # fmt: skip
    async with _running("sglang-router", command, folder, {}):
        url = f"http://127.0.0.1:{port}"
        await _until(url + "/health", b"")
        yield url


ROUTERS: dict[str, Router] = {
    "cortex": cortex,
    "nginx, round-robin": nginx,
    "sglang-router, cache-aware": sglang,
}


@contextlib.asynccontextmanager
async def _all_running(
    command: Callable[[int], list[str]],
    folder: Path,
    environment: dict[str, str],
    urls: list[str],
    path: str,
    words: bytes,
) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as exits:
        for index in range(NODES):
            port = _free_port()
            started = _running(f"node{index}", command(port), folder, environment)
            await exits.enter_async_context(started)
            urls.append(f"http://127.0.0.1:{port}")
        for url in urls:
            await _until(url + path, words)
        yield
    urls.clear()


@contextlib.asynccontextmanager
async def _running(
    name: str, command: list[str], folder: Path, environment: dict[str, str]
) -> AsyncIterator[None]:
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=output, stderr=output
        )
    try:
        yield
    except BaseException as error:
        error.add_note(f"--- end of {log.name}\n{log.read_text('utf-8', 'replace')[-2000:]}")
        raise
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _until(url: str, words: bytes, times: int = 1) -> None:
    """Poll a foreign server, which offers no event to wait for."""
    end = time.monotonic() + START_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with session.get(url) as answer:
                    if answer.status == 200 and (await answer.read()).count(words) >= times:
                        return
            if time.monotonic() > end:
                raise TimeoutError(f"{url} was not ready within {START_S} s")
            await asyncio.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]

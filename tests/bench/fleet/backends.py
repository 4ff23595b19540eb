"""Three servers of one model, and the routers that are put before them; each a process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from tests.bench import peers
from tests.bench.peers import CACHE
from tests.bench.processes import free_port, running, wait_for
from tools.make_gguf import PRESETS, make_gguf

__all__ = ["NODES", "ROUTERS", "Backends", "LlamaServers", "Neurons", "Router", "model"]

NODES = 3
PARALLEL = 4
CONTEXT = 2048


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

    def running(self, folder: Path) -> contextlib.AbstractContextManager[None]: ...


class Neurons:
    name = "neurons"

    def __init__(self) -> None:
        self.model = str(model())
        self.urls: list[str] = []

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[None]:
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

        with _all_running(command, folder, environment, self.urls, "/models", b'"ready"'):
            yield


class LlamaServers:
    name = "llama-servers"

    def __init__(self) -> None:
        self.model = "m"
        self.urls: list[str] = []

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        binary = str(peers.llama_server())

        def command(port: int) -> list[str]:
            return [
                binary, "--host", "127.0.0.1", "--port", str(port), "-m", str(model()), "--jinja",
                "-np", str(PARALLEL), "-c", str(PARALLEL * CONTEXT), "-t", "1", "-tb", "1",
            ]  # fmt: skip

        with _all_running(command, folder, {}, self.urls, "/health", b"ok"):
            yield


class Router(Protocol):
    def __call__(self, urls: Sequence[str], folder: Path) -> contextlib.AbstractContextManager[str]:
        """Its address, leading to all of these."""
        ...


@contextlib.contextmanager
def cortex(urls: Sequence[str], folder: Path) -> Iterator[str]:
    port = free_port()
    text = f'[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:0"\n'
    for index, url in enumerate(urls):
        text += f'[[neurons]]\nname = "n{index}"\nendpoint = "{url}"\n'
    (folder / "cortex.toml").write_text(text, "utf-8")
    command = [sys.executable, "-m", "cortex_gateway", "--config", str(folder / "cortex.toml")]
    with running(command, folder / "gateway.log"):
        url = f"http://127.0.0.1:{port}"
        wait_for(url + "/v1/models", b'"ready"', len(urls))
        yield url


@contextlib.contextmanager
def nginx(urls: Sequence[str], folder: Path) -> Iterator[str]:
    """Round-robin, as its upstreams are unless told otherwise; one worker, so that there is one
    order."""
    port = free_port()
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
    command = [str(peers.nginx()), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, folder / "nginx.log"):
        url = f"http://127.0.0.1:{port}"
        wait_for(url + "/health", b"")
        yield url


@contextlib.contextmanager
def sglang(urls: Sequence[str], folder: Path) -> Iterator[str]:
    """sglang-router's cache-aware policy with its own defaults, in an environment of its own that
    is made on first use."""
    commands = peers.installed("sglang-router", "sglang-router")
    port, metrics = free_port(), free_port()
    command = [
        str(commands / "python"), "-m", "sglang_router.launch_router",
        "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics),
        "--policy", "cache_aware", "--worker-urls", *urls,
    ]  # fmt: skip
    with running(command, folder / "sglang-router.log"):
        url = f"http://127.0.0.1:{port}"
        wait_for(url + "/health", b"")
        yield url


ROUTERS: dict[str, Router] = {
    "cortex": cortex,
    "nginx, round-robin": nginx,
    "sglang-router, cache-aware": sglang,
}


@contextlib.contextmanager
def _all_running(
    command: Callable[[int], list[str]],
    folder: Path,
    environment: dict[str, str],
    urls: list[str],
    path: str,
    words: bytes,
) -> Iterator[None]:
    with contextlib.ExitStack() as exits:
        for index in range(NODES):
            port = free_port()
            log = folder / f"node{index}.log"
            exits.enter_context(running(command(port), log, environment))
            urls.append(f"http://127.0.0.1:{port}")
        for url in urls:
            wait_for(url + path, words)
        yield
    urls.clear()

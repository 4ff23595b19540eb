"""What is measured: the backend itself and each proxy in front of it, each a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench import peers
from tests.bench.processes import cpu_s, family, free_port, resident_bytes, running, wait_for

__all__ = ["TARGETS", "Target", "running_backend"]


class Target(NamedTuple):
    """A listening proxy. `pid`: of its first process; None for the backend itself."""

    address: str
    pid: int | None

    @property
    def pids(self) -> list[int]:
        return family(self.pid) if self.pid is not None else []

    @property
    def resident_mb(self) -> float:
        return resident_bytes(self.pids) / 1e6

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.pids)


@contextlib.contextmanager
def running_backend(gap_ms: float, events: int, spread: bool) -> Iterator[str]:
    """The address of a backend."""
    command = [sys.executable, "-m", "tests.bench.gateway.backend"]
    command += ["--gap-ms", str(gap_ms), "--events", str(events), *(["--spread"] * spread)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextlib.contextmanager
def direct(backend: str, folder: Path) -> Iterator[Target]:
    yield Target(backend, None)


@contextlib.contextmanager
def cortex(backend: str, folder: Path) -> Iterator[Target]:
    """The gateway as it ships: routing, metrics, one log line per request (to a file)."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "cortex.toml"
    config.write_text(
        f'[gateway]\nlisten = "{address}"\nmetrics_listen = "127.0.0.1:0"\n'
        f'[[neurons]]\nname = "bench"\nendpoint = "http://{backend}"\n',
        "utf-8",
    )
    command = [sys.executable, "-m", "cortex_gateway", "--config", str(config)]
    with running(command, folder / "gateway.log") as process:
        wait_for(f"http://{address}/v1/models", b'"loaded":true')
        yield Target(address, process.pid)


@contextlib.contextmanager
def bare(backend: str, folder: Path) -> Iterator[Target]:
    """The gateway's own parts, without the gateway."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "tests.bench.gateway.bare", address, backend]
    with running(command, folder / "bare.log") as process:
        wait_for(f"http://{address}/", b"")
        yield Target(address, process.pid)


@contextlib.contextmanager
def nginx(backend: str, folder: Path) -> Iterator[Target]:
    """One worker, kept-alive upstream connections, no buffering, no access log."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "nginx.conf"
    config.write_text(
        f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  keepalive_requests 1000000000; tcp_nodelay on;
  upstream neurons {{ server {backend}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen {address};
    location / {{
      proxy_pass http://neurons; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
""",
        "utf-8",
    )
    command = [str(peers.nginx()), "-p", str(folder), "-c", str(config)]
    with running(command, folder / "nginx.log") as process:
        wait_for(f"http://{address}/", b"")
        yield Target(address, process.pid)


@contextlib.contextmanager
def litellm(backend: str, folder: Path) -> Iterator[Target]:
    """LiteLLM's proxy, in a virtual environment of its own; made on first use."""
    binary = peers.installed("litellm[proxy]", "litellm") / "litellm"
    address = f"127.0.0.1:{free_port()}"
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: m\n    litellm_params:\n"
        f"      model: openai/m\n      api_base: http://{backend}/v1\n      api_key: none\n"
        "litellm_settings:\n  telemetry: false\n"
        # Without a key, as all the others here: what is measured is the way through.
        "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n",
        "utf-8",
    )
    host, port = address.split(":")
    command = [str(binary), "--config", str(config), "--host", host, "--port", port]
    with running(command, folder / "litellm.log") as process:
        wait_for(f"http://{address}/health/liveliness", b"", within_s=180)
        yield Target(address, process.pid)


TARGETS = {
    "direct": direct,
    "nginx": nginx,
    "bare": bare,
    "cortex": cortex,
    "litellm": litellm,
}

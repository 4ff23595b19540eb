"""What is measured: the backend itself and each proxy in front of it, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.peers import CACHE

__all__ = ["TARGETS", "Target", "running_backend"]


class Target(NamedTuple):
    """A listening proxy. `pids` are all its processes; none for the backend itself."""

    address: str
    pids: list[int]

    @property
    def resident_mb(self) -> float:
        return sum(_resident_bytes(pid) for pid in self.pids) / 1e6

    @property
    def cpu_s(self) -> float:
        return sum(_cpu_s(pid) for pid in self.pids)


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
    yield Target(backend, [])


@contextlib.contextmanager
def cortex(backend: str, folder: Path) -> Iterator[Target]:
    """The gateway as it ships: routing, metrics, one log line per request (to a file)."""
    address = f"127.0.0.1:{_free_port()}"
    config = folder / "cortex.toml"
    config.write_text(
        f'[gateway]\nlisten = "{address}"\nmetrics_listen = "127.0.0.1:0"\n'
        f'[[neurons]]\nname = "bench"\nendpoint = "http://{backend}"\n',
        "utf-8",
    )
    command = [sys.executable, "-m", "cortex_gateway", "--config", str(config)]
    with _running(command, folder / "gateway.log") as process:
        _wait_for(f"http://{address}/v1/models", b'"loaded":true')
        yield Target(address, [process.pid])


@contextlib.contextmanager
def bare(backend: str, folder: Path) -> Iterator[Target]:
    """The gateway's own parts, without the gateway."""
    address = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "tests.bench.gateway.bare", address, backend]
    with _running(command, folder / "bare.log") as process:
        _wait_for(f"http://{address}/", b"")
        yield Target(address, [process.pid])


@contextlib.contextmanager
def nginx(backend: str, folder: Path) -> Iterator[Target]:
    """One worker, kept-alive upstream connections, no buffering, no access log."""
    binary = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if binary is None:
        raise LookupError("nginx is not installed (apt-get install nginx-light)")
    address = f"127.0.0.1:{_free_port()}"
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
    command = [binary, "-p", str(folder), "-c", str(config)]
    with _running(command, folder / "nginx.log") as process:
        _wait_for(f"http://{address}/", b"")
        yield Target(address, [process.pid, *_children(process.pid)])


@contextlib.contextmanager
def litellm(backend: str, folder: Path) -> Iterator[Target]:
    """LiteLLM's proxy, in a virtual environment of its own; made on first use."""
    home = CACHE / "litellm"
    binary = home / "bin" / "litellm"
    if not binary.exists():
        print("installing litellm[proxy] (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "litellm[proxy]"]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    address = f"127.0.0.1:{_free_port()}"
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
    with _running(command, folder / "litellm.log") as process:
        _wait_for(f"http://{address}/health/liveliness", b"", within_s=180)
        yield Target(address, [process.pid, *_children(process.pid)])


TARGETS = {
    "direct": direct,
    "nginx": nginx,
    "bare": bare,
    "cortex": cortex,
    "litellm": litellm,
}


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    except BaseException as error:
        error.add_note(f"--- end of {log.name}\n{log.read_text('utf-8', 'replace')[-2000:]}")
        raise
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, words: bytes, within_s: float = 20) -> None:
    end = time.monotonic() + within_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if words in response.read():
                    return
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(f"{url} does not answer: {error}") from error
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    return [int(child) for child in text.split()]


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""Real daemons for tests: start on free ports, wait for their listening line, stop by pid.

Every test tier starts neurons and gateways through this module. A daemon's log is attached to
whatever exception leaves its `with` block, so a failing test shows what the processes said.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Daemon", "clean_environment", "spawn_neuron", "start_gateway", "start_neuron"]

LISTENING = re.compile(r"^(?P<what>\w+)(?: \S+)? listening on (?P<url>https?://\S+)$")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without the variables that configure cortex, plus `extra`. No public hub is
    ever asked by a test."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEURON_", "CORTEX_"))}
    return kept | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"} | dict(extra or {})


class Daemon:
    """One process whose stdout and stderr are collected line by line."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            text=True,
            errors="replace",
        )
        self.urls: dict[str, str] = {}
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._collect, args=(stream, is_stdout), daemon=True)
            for stream, is_stdout in ((self.process.stdout, True), (self.process.stderr, False))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        """Where the daemon listens; a gateway's metrics are at `urls["metrics"]`."""
        return self.urls[self.name]

    @property
    def log(self) -> str:
        """Everything said so far, both streams, in order of arrival."""
        with self._news:
            return "\n".join(self._lines)

    def wait_listening(self, *whats: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until a listening line was printed for each of `whats`."""
        self._wait_for(lambda: all(what in self.urls for what in whats), "listening", timeout_s)

    def wait_log(self, pattern: str, timeout_s: float = STOP_TIMEOUT_S) -> re.Match[str]:
        """Until a line matches; returns the first match, which may be from the past."""
        found: list[re.Match[str]] = []

        def is_there() -> bool:
            found.extend(m for line in self._lines if (m := re.search(pattern, line)))
            return bool(found)

        self._wait_for(is_there, f"a line matching {pattern!r}", timeout_s)
        return found[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code, once the process has ended and all it said is collected."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(
                f"{self.name} did not end within {timeout_s} s\n{self.log}"
            ) from None
        for reader in self._readers:
            reader.join(5)
        return code

    def stop(self) -> int:
        """SIGTERM, then the exit code; also fine when the process has ended already."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def _wait_for(self, is_true: Callable[[], bool], what: str, timeout_s: float) -> None:
        def is_settled() -> bool:
            return is_true() or self.process.poll() is not None

        with self._news:
            end = time.monotonic() + timeout_s
            while not is_settled() and time.monotonic() < end:
                # The step only bounds how late an exit without a last word is noticed.
                self._news.wait(0.5)
            if is_true():
                return
            said = "\n".join(self._lines)
        state = f"exit code {self.process.poll()}"
        raise AssertionError(f"{self.name}: no {what} ({state}); it said:\n{said}")

    def _collect(self, stream: Iterator[str], is_stdout: bool) -> None:
        for line in stream:
            line = line.rstrip("\n")
            with self._news:
                self._lines.append(line)
                match = LISTENING.match(line) if is_stdout else None
                if match:
                    self.urls[match["what"]] = match["url"]
                self._news.notify_all()


@contextmanager
def _running(daemon: Daemon, *whats: str) -> Iterator[Daemon]:
    try:
        daemon.wait_listening(*whats)
        yield daemon
    except BaseException as error:
        error.add_note(f"--- log of {daemon.name} (pid {daemon.pid})\n{daemon.log}")
        raise
    finally:
        if daemon.process.poll() is None:
            daemon.signal(signal.SIGTERM)
            try:
                daemon.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                daemon.process.kill()
        daemon.wait()


def spawn_neuron(*args: str, environment: Mapping[str, str] | None = None) -> Daemon:
    """A neuron with exactly these arguments, which may be meant not to start. Not waited for."""
    command = [sys.executable, "-m", "neuron", *args]
    return Daemon("neuron", command, clean_environment(environment))


@contextmanager
def start_neuron(
    *args: str,
    config: str | None = None,
    models: Sequence[str] = ("cortex/tiny",),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    """A neuron on a free port of 127.0.0.1, listening (its models may still be loading).

    args: more flags. config: the text of a neuron.toml. models: given as `--model` each.
    """
    with tempfile.TemporaryDirectory(prefix="neuron-test-") as folder:
        flags = ["--listen", "127.0.0.1:0", "--log-level", "debug"]
        if config is not None:
            file = Path(folder, "neuron.toml")
            file.write_text(config, "utf-8")
            flags += ["--config", str(file)]
        for model in models:
            flags += ["--model", model]
        with _running(spawn_neuron(*flags, *args, environment=environment), "neuron") as daemon:
            yield daemon


@contextmanager
def start_gateway(
    config_text: str, environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """`cortex serve` with this cortex.toml, listening. Give port 0 for both its addresses."""
    with tempfile.TemporaryDirectory(prefix="gateway-test-") as folder:
        file = Path(folder, "cortex.toml")
        file.write_text(config_text, "utf-8")
        command = [str(Path(sys.executable).with_name("cortex")), "serve", "--config", str(file)]
        daemon = Daemon("gateway", command, clean_environment(environment))
        with _running(daemon, "gateway", "metrics"):
            yield daemon

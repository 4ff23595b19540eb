"""`cortex` as a user runs it: real processes, real sockets, the real model."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import clean_environment

START_S = 60.0
STOP_S = 45.0


class Cortex:
    """Runs `cortex ARGS` against one gateway and returns what it said."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cortex_cli", *arguments],
            env=clean_environment({"CORTEX_URL": self.url}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


class Up:
    """A `cortex up` in the background."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._output = folder / "up.out"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cortex_cli", "up", *arguments],
                env=clean_environment({"TMPDIR": str(folder), "XDG_STATE_HOME": str(folder)}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text("utf-8")

    def url(self) -> str:
        """Waits until it says that it is up."""
        deadline_s = time.monotonic() + START_S
        while True:
            match = re.search(r"^cortex is up: (\S+)$", self.output, re.MULTILINE)
            if match:
                return match[1]
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline_s, self.output
            time.sleep(0.05)

    def ended(self) -> int:
        """Waits for its end; the exit code."""
        return self.process.wait(STOP_S)

    def family(self) -> dict[int, str]:
        """Every living descendant: pid → command line."""
        found: dict[int, str] = {}
        wanted = [self.process.pid]
        parents = _parents()
        while wanted:
            parent = wanted.pop()
            for pid in (pid for pid, its_parent in parents.items() if its_parent == parent):
                found[pid] = _command_line(pid)
                wanted.append(pid)
        return found

    def child(self, words: str) -> int:
        """The pid of the direct child whose command line holds `words`."""
        parents = _parents()
        family = self.family()
        (pid,) = (
            p for p, line in family.items() if words in line and parents[p] == self.process.pid
        )
        return pid

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.ended()


def _parents() -> dict[int, int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    return parents


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def survivors(family: dict[int, str]) -> dict[int, str]:
    """Those of a family that are still alive, after a moment's grace."""
    deadline_s = time.monotonic() + 3
    while True:
        alive = {pid: line for pid, line in family.items() if pid in _parents()}
        if not alive or time.monotonic() > deadline_s:
            return alive
        time.sleep(0.05)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[Up]:
    running = Up(folder, *(arguments or ("--port", "0")))
    try:
        yield running
    finally:
        running.close()

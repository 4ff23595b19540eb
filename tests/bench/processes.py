"""Servers under measurement: each a process with its log, for as long as it is needed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["cpu_s", "family", "free_port", "resident_bytes", "running", "wait_for"]

_NOTHING: Mapping[str, str] = {}


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] = _NOTHING
) -> Iterator[subprocess.Popen[bytes]]:
    """`environment`: besides this process's own. The end of the log becomes a note of whatever is
    raised."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        yield process
    except BaseException as error:
        error.add_note(f"--- end of {log.name}\n{log.read_text('utf-8', 'replace')[-3000:]}")
        raise
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, words: bytes, times: int = 1, *, within_s: float = 120) -> None:
    """Until its answer is no failure and holds the words so often. A foreign server offers no event
    to wait for. Raises TimeoutError."""
    end = time.monotonic() + within_s
    while True:
        why = "other words"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.read().count(words) >= times:
                    return
        except OSError as error:
            why = str(error)
        if time.monotonic() > end:
            raise TimeoutError(f"{url} was not ready within {within_s} s: {why}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def family(pid: int) -> list[int]:
    """The process and its descendants, parents first; none if it has ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [
            int(child) for task in tasks for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(child))]


def resident_bytes(pids: Sequence[int]) -> int:
    """Pages that they share count for each."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pids: Sequence[int]) -> float:
    """What they have used of processors' time."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")

"""One download under way, as the parent sees it: a process, how far it is, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cortex_core.errors import CortexError, NoCapacity, UpstreamFailed
from neuron import logs
from neuron.models.fetcher import FetchReport
from neuron.models.hub import FetchOrder

__all__ = ["FETCHER_COMMAND", "Fetch"]

FETCHER_COMMAND = (sys.executable, "-P", "-m", "neuron.models.fetcher")
_END_S = 5.0  # from SIGTERM to SIGKILL; to remove the half of a file takes no time
_LAST_CHARACTERS = 1000
_DRAIN_S = 1.0  # after the last report, for what it said on stderr

_log = logs.get(__name__)


class Fetch:
    """`run()` once. `on_progress` is called when more has come."""

    def __init__(
        self,
        order: FetchOrder,
        on_progress: Callable[[], None],
        command: Sequence[str] = FETCHER_COMMAND,
    ) -> None:
        self._order = order
        self._command = command
        self._on_progress = on_progress
        self._have_bytes = 0
        self._last: FetchReport | None = None
        self._called_off = asyncio.Event()
        self._stderr = ""  # its tail

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return min(self._have_bytes / max(self._order.total_bytes, 1), 1.0)

    def call_off(self) -> None:
        """`run` then raises NoCapacity, as soon as the process has ended."""
        self._called_off.set()

    async def run(self) -> Path:
        """The first file, when all are here. Raises what the hub's or the disk's failure is,
        NoCapacity when it is called off, and UpstreamFailed for a process that cannot be made or
        ends without a word. Waits as long as the hub sends anything at all: the
        library gives up on one that is silent for some seconds, several times over."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise UpstreamFailed(f"{self._order.repo}: cannot be downloaded: {error}") from None
        reading = asyncio.create_task(self._read(process), name=f"fetch {self._order.repo}")
        calling_off = asyncio.create_task(self._called_off.wait())
        try:
            await asyncio.wait({reading, calling_off}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(process)
            calling_off.cancel()
            await asyncio.gather(reading, calling_off, return_exceptions=True)
        return self._result()

    def _result(self) -> Path:
        if self._called_off.is_set():
            raise NoCapacity(f"{self._order.repo}: was to be unloaded while it was downloaded")
        last = self._last
        if last is not None and last.path is not None:
            return Path(last.path)
        if last is not None and last.fault is not None:
            raise CortexError.from_fault(last.fault)
        said = " | ".join(self._stderr.splitlines())
        raise UpstreamFailed(f"{self._order.repo}: the download ended without a result; {said}")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        following = asyncio.create_task(self._follow(process.stderr))
        try:
            process.stdin.write(msgspec.json.encode(self._order) + b"\n")
            while line := await process.stdout.readline():
                report = msgspec.json.decode(line, type=FetchReport)
                self._last = report
                self._have_bytes = max(self._have_bytes, report.have_bytes)
                self._on_progress()
            await asyncio.wait({following}, timeout=_DRAIN_S)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _follow(self, stderr: asyncio.StreamReader) -> None:
        while data := await stderr.read(4096):
            text = data.decode("utf-8", "replace")
            self._stderr = (self._stderr + text)[-_LAST_CHARACTERS:]
            _log.debug("fetcher", repo=self._order.repo, said=text.strip())


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, a moment to tidy up, then SIGKILL; at once for one that has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()

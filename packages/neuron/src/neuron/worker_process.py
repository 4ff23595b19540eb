"""One worker process: its start, its socket, its last words, its end. Holds no policy.

`on_report` gets every message in order; `on_exit` is called once, after the last message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cortex_core.fleet.discovery import DeviceState
from cortex_core.wire import ipc
from neuron import logs

__all__ = ["WORKER_COMMAND", "Exit", "OnExit", "OnReport", "WorkerProcess"]

# -P: a folder called `neuron` where the daemon was started must not be run instead of the package.
WORKER_COMMAND = (sys.executable, "-P", "-m", "neuron.worker")
_LAST_LINES = 12
_LINE_BYTES = 500
_DRAIN_S = 2.0  # after the exit, for what is still in the pipes; a grandchild may hold them open

OnReport = Callable[[ipc.Report], None]
OnExit = Callable[["Exit"], None]

_log = logs.get(__name__)


class Exit(NamedTuple):
    """How a process ended, in words for people and in one word to count by, and the tail of its
    stderr."""

    how: str
    kind: str
    stderr: tuple[str, ...] = ()


class WorkerProcess(asyncio.Protocol):
    def __init__(self, device: str, on_report: OnReport, on_exit: OnExit) -> None:
        self._device = device
        self._on_report = on_report
        self._on_exit = on_exit
        self._frames = ipc.Reader(ipc.Report)  # pyright: ignore[reportArgumentType]
        self._stderr: deque[str] = deque(maxlen=_LAST_LINES)
        self._broken: str | None = None  # why its frames can no longer be read
        self._is_muted = False
        self._hung_up = asyncio.Event()
        self._process: asyncio.subprocess.Process
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.Task[None]

    @classmethod
    async def start(
        cls,
        device: DeviceState,
        on_report: OnReport,
        on_exit: OnExit,
        command: Sequence[str] = WORKER_COMMAND,
        *,
        report_every_s: float = 1.0,
        restore: Path | None = None,
    ) -> WorkerProcess:
        """`restore`: the folder that a process before has saved its sequences to. Raises OSError
        when no process can be made."""
        self = cls(device.id, on_report, on_exit)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    "--fd",
                    str(theirs.fileno()),
                    "--device",
                    device.id,
                    "--report-every",
                    f"{report_every_s:g}",
                    *(("--restore", str(restore)) if restore is not None else ()),
                    stdin=asyncio.subprocess.DEVNULL,
                    # stdout is for the neuron's listening line alone.
                    stdout=2,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                    env=_environment(device),
                    # Ctrl-C in a terminal goes to the whole foreground group; workers must outlive
                    # it until the parent has drained their requests.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self, sock=ours)
        self._watch = asyncio.create_task(self._until_exit(), name=f"watch {device.id}")
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr(self) -> tuple[str, ...]:
        """Its last lines so far."""
        return tuple(self._stderr)

    def send(self, command: ipc.Command) -> None:
        """Queue one command; a worker that has gone is told nothing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(ipc.encode(command))

    def kill(self, mute: bool = True) -> None:
        """SIGKILL. `mute`: deliver no report of it any more, only its exit."""
        self._is_muted = self._is_muted or mute
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    async def ended(self) -> None:
        """Until `on_exit` has been called."""
        await asyncio.shield(self._watch)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        try:
            for report in self._frames.feed(data):
                if self._is_muted:
                    return
                self._on_report(report)  # pyright: ignore[reportArgumentType]
        except ValueError as error:  # msgspec.DecodeError is one
            self._broken = f"sent what is no message ({error})"
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        self._hung_up.set()

    # the end

    async def _until_exit(self) -> None:
        listener = asyncio.create_task(self._listen())
        code = await self._process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self._hung_up.wait()
                await asyncio.shield(listener)
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
        if self._transport is not None:
            self._transport.abort()
        if self._broken:
            how, kind = self._broken, "garbage"
        elif code < 0:
            name = _signal_name(-code)
            how, kind = f"was killed by {name}", name.lower().replace(" ", "_")
        else:
            how, kind = f"exited with code {code}", f"exit_{code}"
        self._on_exit(Exit(how, kind, tuple(self._stderr)))

    async def _listen(self) -> None:
        """Pass stderr on to the log and keep its last lines."""
        stream = self._process.stderr
        assert stream is not None
        rest = b""
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-_LINE_BYTES:]
            for line in lines:
                self._heard(line)
        self._heard(rest)

    def _heard(self, line: bytes) -> None:
        text = line[:_LINE_BYTES].decode("utf-8", "replace").strip()
        if text:
            self._stderr.append(text)
            _log.info("worker says", device=self._device, pid=self.pid, line=text)


def _environment(device: DeviceState) -> dict[str, str]:
    """This process's, with that device alone visible. A GPU without a readable uuid is named by
    its index, which NVML counts in PCI order."""
    environment = dict(os.environ)
    # At a failed assertion ggml starts a debugger, whose words would be the worker's last ones.
    environment.setdefault("GGML_NO_BACKTRACE", "1")
    # Huge pages for what malloc maps, caches and repacked weights above all: a load touches every
    # page of them, and took 0.58 s instead of 0.85 s for 0.9 GB of KV cache.
    environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    if device.kind == "cpu":
        visible = ""
    else:
        visible = device.uuid or str(device.index)
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    environment["CUDA_VISIBLE_DEVICES"] = visible
    return environment


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

"""One child process: started apart from the terminal, its output in a file, stopped for certain."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cortex_cli.failure import Failure

__all__ = ["Child"]

_LOOK_S = 0.02
_PR_SET_PDEATHSIG = 1


class Child:
    """`name` is for people; `module` is run with this Python; output goes to `log` alone.

    It leads its own process group, so that Ctrl-C in the terminal reaches only us and the order
    of stopping is ours; and on Linux it gets SIGTERM should we be killed outright.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        log: Path,
    ) -> None:
        self.name = name
        self.log = log
        self._command = [sys.executable, "-m", module, *arguments]
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        environment = {
            **os.environ,
            **self._environment,
            "PYTHONUNBUFFERED": "1",
            # A folder called `neuron` in the current one must not be run instead of the package.
            "PYTHONSAFEPATH": "1",
        }
        with self.log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )

    async def said(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """The first line of its output that matches. Raises Failure if it ends or is silent."""
        assert self._process is not None
        wanted = re.compile(pattern, re.MULTILINE)
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while True:
            has_ended = self._process.returncode is not None
            match = wanted.search(self._output())
            if match:
                return match
            if has_ended:
                raise self.death()
            if asyncio.get_running_loop().time() > deadline_s:
                raise self._failure(f"{self.name} was not up within {timeout_s:.0f} s")
            await asyncio.sleep(_LOOK_S)

    async def ended(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    def death(self) -> Failure:
        """The cause to show, once it has ended without being asked to."""
        assert self._process is not None
        code = self._process.returncode
        if code is not None and code < 0:
            how = f"was killed by {_signal_name(-code)}"
        else:
            how = f"ended with exit code {code}"
        return self._failure(f"{self.name} {how}")

    def _failure(self, message: str, lines: int = 12) -> Failure:
        last = self._output().rstrip().splitlines()[-lines:]
        if not last:
            return Failure(f"{message}, having said nothing")
        return Failure(f"{message}; its last lines ({self.log}):", last)

    async def stop(self, patience_s: float) -> None:
        """SIGTERM, then SIGKILL when patience ends; nothing of its process group is left."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), patience_s)
            except TimeoutError:
                pass
            finally:
                if process.returncode is None:
                    self.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _output(self) -> str:
        return self.log.read_text("utf-8", "replace")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: no imports or locks after it
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

"""How OpenMP's threads wait for each other: spinning while the cores are theirs, asleep otherwise.

One per worker process, as the OpenMP library is. Engines tell it of their steps and their rests; it
never touches a context, and what it does changes no result.

After every operator a model's threads meet at a barrier. Where all of them run, the last one is
there within microseconds, and whoever went to sleep meanwhile loses time to be woken. Where one has
to wait for a core that something else is using, the others spin on the time it needs. GNU OpenMP
takes the number of spins from the environment, once (see `neuron.worker.llama`), but spins a
hundred times at most while it manages more threads than there are cores, in whichever teams. So a
team that does nothing makes all others sleep early, for as long as it is there.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Contention", "Times", "WaitPolicy", "thread_times"]

Times = tuple[int, int]
"""Of a thread, since it began: ns it ran, and ns it was ready to run and had no core."""

_LOOK_EVERY_S = 0.25
_SHARED, _OURS = 0.35, 0.3
"""Parts of its time. Beside a busy process the thread that is worst off waits for 0.38 of it and
more; beside one that works for half of the time 0.31 at most, and spinning is the better there."""

_BUSY_NS = 50_000_000
_PAUSE_SOFT = 1  # omp_pause_resource_t


class Contention:
    """Whether the threads have to share their cores: one of them had to wait for a core during so
    large a part of the time in which it wanted one."""

    def __init__(self) -> None:
        self.is_shared = False
        self._before: Mapping[int, Times] = {}

    def observe(self, threads: Mapping[int, Times]) -> bool:
        """`threads`: by thread id. The first observation, and those between which no thread had
        work for 50 ms, tell nothing, and leave the answer as it was."""
        before, self._before = self._before, threads
        parts: list[float] = []
        for thread, (ran, waited) in threads.items():
            if thread in before:
                ran, waited = ran - before[thread][0], waited - before[thread][1]
                if ran + waited >= _BUSY_NS:
                    parts.append(waited / (ran + waited))
        if parts:
            self.is_shared = max(parts) > (_OURS if self.is_shared else _SHARED)
        return self.is_shared


class WaitPolicy:
    """`openmp` is the library that llama.cpp's threads belong to; without it they are watched
    only. `times` raises OSError where the system does not tell, and all sleep early then."""

    def __init__(
        self,
        openmp: Any | None,
        *,
        times: Callable[[], Mapping[int, Times]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._openmp = openmp
        self._times = times or thread_times
        self._clock = clock
        self._contention = Contention()
        self._looking = threading.Lock()
        self._look_at = 0.0
        self._crowd: _Crowd | None = None

    @property
    def shares_cores(self) -> bool:
        """As of the last time that something was computed."""
        return self._contention.is_shared

    @property
    def is_brief(self) -> bool:
        """Threads sleep early."""
        return self._crowd is not None

    def stepped(self) -> None:
        """Of an engine's thread, after each of its steps: look around, now and then."""
        if self._clock() < self._look_at or not self._looking.acquire(blocking=False):
            return  # it is too early, or another engine looks
        try:
            self._look_at = self._clock() + _LOOK_EVERY_S
            self._set(is_brief=self._look())
        finally:
            self._looking.release()

    def rest(self) -> None:
        """Of an engine's thread, before it waits for work: its team ends. OpenMP would count the
        threads of idle models too, and have those of the others sleep early for them."""
        if self._openmp is not None:
            self._openmp.omp_pause_resource_all(_PAUSE_SOFT)

    def _look(self) -> bool:
        try:
            return self._contention.observe(self._times())
        except OSError:
            return True

    def _set(self, *, is_brief: bool) -> None:
        if is_brief and self._crowd is None and self._openmp is not None:
            self._crowd = _Crowd(self._openmp)
        elif not is_brief and self._crowd is not None:
            self._crowd.leave()
            self._crowd = None


class _Crowd(threading.Thread):
    """A team that has nothing to do, of one thread more than there are cores. It ends with the
    thread that has called for it."""

    def __init__(self, openmp: Any) -> None:
        super().__init__(name="OpenMP crowd", daemon=True)
        self._openmp = openmp
        self.has_gathered = threading.Event()
        self._may_leave = threading.Event()
        self.start()

    def leave(self) -> None:
        self._may_leave.set()

    def run(self) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of NULL
        self._openmp.GOMP_parallel(nothing, None, self._openmp.omp_get_num_procs() + 1, 0)
        self.has_gathered.set()
        self._may_leave.wait()


def thread_times(tasks: Path = Path("/proc/self/task")) -> dict[int, Times]:
    """Of all threads of this process. Raises OSError where Linux does not count it."""
    found: dict[int, Times] = {}
    for thread in os.listdir(tasks):
        try:
            with open(f"{tasks}/{thread}/schedstat", "rb", buffering=0) as file:
                ran, waited, _ = file.read(96).split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        found[int(thread)] = int(ran), int(waited)
    if not any(ran for ran, _ in found.values()):
        raise OSError("schedstat is not counted")
    return found

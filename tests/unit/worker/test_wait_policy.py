"""When OpenMP's threads spin for each other and when they sleep, and that they really do."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cortex_core.wire.ipc import Progress
from neuron.worker import llama
from neuron.worker.wait_policy import Contention, Times, WaitPolicy, thread_times
from tests.unit.worker.driven import driven
from tests.unit.worker.neighbours import busy
from tests.unit.worker.worker_process import ENDLESS, TINY, WorkerProcess

MS = 1_000_000


class Watched:
    """A contention that has seen two threads' first times, and is fed what they do from then on."""

    def __init__(self) -> None:
        self.contention = Contention()
        self.times: dict[int, Times] = dict.fromkeys(range(2), (7 * MS, 9000 * MS))
        self.contention.observe(self.times)

    def goes_on(self, *more: tuple[float, float]) -> bool:
        """By thread: ms that it ran, and ms that it waited."""
        self.times = {
            thread: (self.times[thread][0] + int(ran * MS), self.times[thread][1] + int(wait * MS))
            for thread, (ran, wait) in enumerate(more)
        }
        return self.contention.observe(self.times)


def test_what_was_waited_before_the_first_look_tells_nothing() -> None:
    assert not Watched().contention.is_shared


def test_threads_that_run_whenever_they_want_have_the_cores_to_themselves() -> None:
    assert not Watched().goes_on((240, 3), (240, 3))


def test_one_thread_that_waits_for_half_of_its_time_makes_cores_shared() -> None:
    assert Watched().goes_on((240, 2), (125, 125))


def test_others_short_errands_do_not_make_cores_shared() -> None:
    assert not Watched().goes_on((240, 8), (200, 50))


def test_shared_cores_are_ours_again_when_nobody_waits_any_more() -> None:
    watched = Watched()
    assert watched.goes_on((125, 125), (240, 2))
    assert not watched.goes_on((240, 2), (240, 2))


def test_an_answer_at_the_limit_does_not_go_to_and_fro() -> None:
    watched = Watched()
    assert watched.goes_on((125, 125), (240, 2))
    for _ in range(3):
        assert watched.goes_on((168, 82), (240, 2))  # 0.33
    assert not watched.goes_on((190, 60), (240, 2))
    for _ in range(3):
        assert not watched.goes_on((168, 82), (240, 2))


def test_a_thread_with_hardly_any_work_tells_nothing() -> None:
    watched = Watched()
    assert not watched.goes_on((10, 30), (240, 2))
    assert watched.goes_on((125, 125), (240, 2))
    assert watched.goes_on((10, 1), (20, 0))


def test_a_thread_that_came_or_went_meanwhile_is_left_out() -> None:
    contention = Contention()
    contention.observe({1: (0, 0), 2: (0, 0)})
    assert not contention.observe({1: (240 * MS, 0), 3: (100 * MS, 900 * MS)})


class Scripted:
    """Thread times as a script has them, at a clock of its own; and OpenMP's calls, noted."""

    def __init__(self, *times: Mapping[int, Times] | OSError) -> None:
        self.now = 0.0
        self.left = list(times)
        self.crowds = 0
        self.crowded = threading.Event()
        self.policy = WaitPolicy(self, times=self._times, clock=lambda: self.now)

    def _times(self) -> Mapping[int, Times]:
        times = self.left.pop(0)
        if isinstance(times, OSError):
            raise times
        return times

    def omp_get_num_procs(self) -> int:
        return 2

    def GOMP_parallel(self, _: Any, __: None, threads: int, flags: int) -> None:  # noqa: N802
        assert (threads, flags) == (3, 0)
        self.crowds += 1
        self.crowded.set()

    def step(self, after_s: float = 1.0) -> bool:
        self.now += after_s
        self.policy.stepped()
        return self.policy.is_brief


CALM = [{1: (n * 250 * MS, 0)} for n in range(2)]


def test_it_looks_around_four_times_a_second_at_most() -> None:
    scripted = Scripted(*CALM)
    for _ in range(11):
        scripted.step(after_s=0.03)
    assert scripted.left == []
    scripted.step(after_s=0.03)


def test_threads_sleep_early_as_long_as_cores_are_shared() -> None:
    contended = {1: (125 * MS, 125 * MS)}
    scripted = Scripted(CALM[0], contended, {1: (375 * MS, 125 * MS)})
    assert [scripted.step() for _ in range(3)] == [False, True, False]
    assert scripted.crowded.wait(10)
    assert scripted.crowds == 1


def test_threads_sleep_early_where_the_system_counts_no_waiting() -> None:
    scripted = Scripted(OSError("schedstat is not counted"))
    assert scripted.step()
    assert not scripted.policy.shares_cores  # for all that is known


def test_without_gnu_openmp_threads_are_watched_and_left_alone() -> None:
    times = iter([{1: (0, 0)}, {1: (125 * MS, 125 * MS)}])
    policy = WaitPolicy(None, times=lambda: next(times), clock=iter(range(99)).__next__)
    policy.stepped()
    policy.stepped()
    policy.rest()
    assert policy.shares_cores
    assert not policy.is_brief


def test_this_system_counts_how_long_threads_run_and_wait() -> None:
    times = thread_times()
    assert times[threading.get_native_id()][0] > 0


@pytest.mark.parametrize("counted", ["0 0 3\n", None])
def test_a_system_that_does_not_count_is_an_error(tmp_path: Path, counted: str | None) -> None:
    (tmp_path / "17").mkdir()
    if counted is not None:
        (tmp_path / "17" / "schedstat").write_text(counted)
    with pytest.raises(OSError, match="not counted"):
        thread_times(tmp_path)


SPUN = """
import ctypes
from neuron.worker import llama
from neuron.worker.wait_policy import _Crowd, thread_times

openmp = llama.openmp()
nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
alone = set(thread_times())
openmp.GOMP_parallel(nothing, None, 2, 0)
(other,) = set(thread_times()) - alone

def is_asleep():
    with open(f"/proc/self/task/{other}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"

def spun_ms():
    before = thread_times()[other][0]
    for _ in range(20):
        openmp.GOMP_parallel(nothing, None, 2, 0)
        while not is_asleep():  # it looks for more to do
            pass
    return (thread_times()[other][0] - before) / 1e6

alone = spun_ms()
crowd = _Crowd(openmp)
crowd.has_gathered.wait(10)
crowded = spun_ms()
crowd.leave()
crowd.join(10)
print(alone, crowded, spun_ms())
"""


def in_python(script: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, env=clean | environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is always shared")
def test_a_crowd_makes_other_teams_sleep_early_until_it_leaves() -> None:
    alone, crowded, afterwards = map(float, in_python(SPUN).split())
    assert crowded < alone / 4
    assert crowded < afterwards / 4


OWNED = """
import os
from neuron.worker import llama
print(llama.openmp() is not None, os.environ.get("GOMP_SPINCOUNT"))
"""


def test_the_spin_count_is_ours_and_goes_no_further() -> None:
    assert in_python(OWNED).split() == ["True", "None"]


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_who_sets_the_spins_in_the_environment_decides(name: str) -> None:
    value = {"GOMP_SPINCOUNT": "17", "OMP_WAIT_POLICY": "passive"}[name]
    ours, count = in_python(OWNED, **{name: value}).split()
    assert ours == "False"
    assert count == ("17" if name == "GOMP_SPINCOUNT" else "None")


def test_an_engine_that_rests_lets_its_threads_go() -> None:
    openmp = llama.openmp()
    assert openmp is not None
    openmp.omp_pause_resource_all(ctypes.c_int(1))
    before = set(thread_times())
    with driven(TINY, threads=3) as engine:
        policy = WaitPolicy(openmp)
        engine.submit("Hello", max_tokens=4)
        engine.run()
        team = set(thread_times()) - before
        policy.rest()
        assert len(team - set(thread_times())) == 2
        assert engine.answer("Hello", max_tokens=4).fault is None  # with a new team


def resting_threads(threads: int) -> int:
    """Of a worker whose model has answered with so many and has nothing to do."""
    with WorkerProcess() as worker:
        worker.load(threads=threads)
        worker.ask("Hello", max_tokens=4)
        for _ in range(2):  # the first may be from before the end
            worker.wait_for(Progress)
        return len(os.listdir(f"/proc/{worker.process.pid}/task"))


def test_a_model_without_work_holds_no_threads() -> None:
    assert resting_threads(3) == resting_threads(1)


def test_a_worker_whose_cores_others_use_says_so_and_spins_no_longer() -> None:
    cores = len(os.sched_getaffinity(0))
    with WorkerProcess() as worker, ExitStack() as others:
        tasks = Path(f"/proc/{worker.process.pid}/task")
        worker.load(threads=cores, context=4096)
        worker.wait_for(Progress)  # it rests
        resting = len(os.listdir(tasks))
        for _ in range(2 * cores):
            others.enter_context(busy())
        while not (worker.progress and worker.progress[-1].shares_cores):
            worker.ask("Hello", sampling=ENDLESS, max_tokens=1000)
        worker.wait_until(lambda: len(os.listdir(tasks)) >= resting + 1 + cores)  # the crowd

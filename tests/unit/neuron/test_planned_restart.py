"""Traces of a planned restart: events in, instructions out, no process and no clock."""

from __future__ import annotations

import pytest

from neuron.worker_events import (
    Begun,
    ConcludeLoad,
    ConcludeRestart,
    ConcludeUnload,
    EndRequests,
    Exited,
    Greeted,
    Instruction,
    Kill,
    LoadWanted,
    Quiesced,
    RestartAfter,
    RestartWanted,
    SendLoad,
    SendShutdown,
    Spawn,
    Spawned,
    StopWanted,
    Succeeded,
    Ticked,
    UnloadWanted,
)
from neuron.worker_policy import Limits, WorkerPolicy
from tests.unit.neuron.worker_traces import INFO, KILLED, come_back, load, spec, up


@pytest.fixture
def worker() -> WorkerPolicy:
    return up()


def quiesced(worker: WorkerPolicy) -> None:
    assert worker.handle(RestartWanted()) == []
    assert worker.handle(Quiesced(10)) == [SendShutdown()]


def test_a_planned_restart_hands_over_and_reloads_and_is_no_crash(worker: WorkerPolicy):
    load(worker, "a")
    load(worker, "b")
    assert worker.handle(RestartWanted()) == []
    assert {m.phase for m in worker.models.values()} == {"recovering"}
    assert worker.phase == "ready"
    assert worker.handle(Quiesced(10)) == [SendShutdown()]
    assert worker.handle(Exited(11, "exited with code 0", "exit_0")) == [Spawn(restores=True)]
    worker.handle(Spawned(11, 101))
    assert worker.handle(Greeted(12)) == [SendLoad(spec("a"))]
    assert worker.handle(Succeeded("a", INFO)) == [SendLoad(spec("b"))]
    assert worker.handle(Succeeded("b", INFO)) == [ConcludeRestart()]
    assert {m.phase for m in worker.models.values()} == {"ready"}
    assert (worker.pid, worker.restarts, worker.cause) == (101, 1, None)
    assert worker.ends == {"planned": 1}
    # A crash afterwards is the first one.
    assert worker.handle(Exited(20, KILLED, "sigkill"))[-1] == RestartAfter(0.2)


def test_a_restart_of_a_worker_without_models_is_over_when_it_greets(worker: WorkerPolicy):
    quiesced(worker)
    assert worker.handle(Exited(11, "exited with code 0", "exit_0")) == [Spawn(restores=True)]
    assert worker.handle(Greeted(12)) == [ConcludeRestart()]


def test_a_worker_that_did_not_end_well_hands_nothing_over(worker: WorkerPolicy):
    quiesced(worker)
    assert worker.handle(Exited(11, "was killed by SIGSEGV", "sigsegv")) == [Spawn()]
    assert worker.handle(Greeted(12)) == [ConcludeRestart()]


def test_a_worker_that_takes_too_long_to_leave_is_killed_once(worker: WorkerPolicy):
    quiesced(worker)
    for at in range(11, 71, 4):
        assert worker.handle(Ticked(at)) == []
    assert worker.handle(Ticked(70.5)) == [Kill()]
    assert worker.handle(Ticked(71)) == []
    assert worker.handle(Exited(72, KILLED, "sigkill")) == [Spawn()]
    assert worker.handle(Greeted(73)) == [ConcludeRestart()]


def test_a_new_worker_gets_the_time_to_take_over_what_was_saved(worker: WorkerPolicy):
    quiesced(worker)
    worker.handle(Exited(11, "exited with code 0", "exit_0"))
    worker.handle(Spawned(11, 101))
    for at in range(12, 132, 4):
        assert worker.handle(Ticked(at)) == []
    assert worker.handle(Ticked(132))[0] == Kill()


def test_a_crash_while_a_restart_drains_is_a_crash_and_ends_the_restart(worker: WorkerPolicy):
    load(worker, "a")
    worker.handle(RestartWanted())
    out = worker.handle(Exited(5, KILLED, "sigkill"))
    assert [type(i) for i in out] == [EndRequests, ConcludeRestart, RestartAfter]
    assert come_back(worker, 6, 101) == [SendLoad(spec("a"))]
    assert worker.handle(Succeeded("a", INFO)) == []


def test_a_new_worker_that_dies_ends_the_restart_with_its_cause(worker: WorkerPolicy):
    load(worker, "a")
    quiesced(worker)
    worker.handle(Exited(11, "exited with code 0", "exit_0"))
    out: list[Instruction] = worker.handle(Exited(12, "exited with code 3", "exit_3", ("why",)))
    (concluded,) = [i for i in out if isinstance(i, ConcludeRestart)]
    assert concluded.fault is not None
    assert concluded.fault.message.endswith("why")
    assert come_back(worker, 13, 102) == [SendLoad(spec("a"))]


def test_a_load_in_progress_is_finished_before_the_worker_leaves(worker: WorkerPolicy):
    worker.handle(LoadWanted(spec("a")))
    worker.handle(RestartWanted())
    assert worker.handle(LoadWanted(spec("late"))) == []
    assert worker.handle(Quiesced(5)) == []
    assert not worker.is_settled
    assert worker.handle(Succeeded("a", INFO)) == [ConcludeLoad("a")]
    assert worker.models["a"].phase == "recovering"
    assert worker.handle(Quiesced(6)) == [SendShutdown()]
    worker.handle(Exited(7, "exited with code 0", "exit_0"))
    assert worker.handle(Greeted(8)) == [SendLoad(spec("late"))]


def test_a_model_unloaded_while_the_worker_leaves_does_not_come_back(worker: WorkerPolicy):
    load(worker, "a")
    quiesced(worker)
    assert worker.handle(UnloadWanted("a")) == [ConcludeUnload("a")]
    worker.handle(Exited(11, "exited with code 0", "exit_0"))
    assert worker.handle(Greeted(12)) == [ConcludeRestart()]


def test_only_a_worker_that_is_ready_is_restarted(worker: WorkerPolicy):
    worker.handle(RestartWanted())
    (again,) = worker.handle(RestartWanted())
    assert isinstance(again, ConcludeRestart)
    assert again.fault is not None
    assert (again.fault.code, "planned" in again.fault.message) == ("conflict", True)
    fresh = WorkerPolicy("cpu", Limits(crashes_to_fail=1))
    fresh.handle(Begun(0))
    fresh.handle(Exited(1, "exited with code 3", "exit_3", ("boom",)))
    (refused,) = fresh.handle(RestartWanted())
    assert isinstance(refused, ConcludeRestart)
    assert refused.fault is not None
    assert "is failed" in refused.fault.message
    assert "boom" in refused.fault.message


def test_a_stop_ends_a_restart_too(worker: WorkerPolicy):
    quiesced(worker)
    assert [type(i) for i in worker.handle(StopWanted())] == [EndRequests, ConcludeRestart]
    assert worker.handle(Exited(11, "exited with code 0", "exit_0")) == []

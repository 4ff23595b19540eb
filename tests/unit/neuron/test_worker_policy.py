"""Traces of a device's worker: events in, instructions out, no process and no clock."""

from __future__ import annotations

import pytest

from cortex_core.errors import Fault
from cortex_core.wire import ipc
from neuron.worker_events import (
    Advanced,
    Begun,
    Blame,
    ConcludeLoad,
    ConcludeUnload,
    EndRequests,
    Exited,
    Greeted,
    Kill,
    LoadWanted,
    Refused,
    Reported,
    RestartAfter,
    RestartDue,
    SendLoad,
    SendUnload,
    Spawned,
    StopWanted,
    Succeeded,
    Ticked,
    Unloaded,
    UnloadWanted,
)
from neuron.worker_policy import Limits, WorkerPolicy
from tests.unit.neuron.worker_traces import (
    INFO,
    KILLED,
    LIMITS,
    come_back,
    load,
    load_report,
    spec,
    up,
)


@pytest.fixture
def worker() -> WorkerPolicy:
    return up()


def test_a_model_wanted_before_the_worker_is_up_is_loaded_when_it_is():
    policy = WorkerPolicy("cpu", LIMITS)
    policy.handle(Begun(0))
    assert policy.handle(LoadWanted(spec("a"))) == []
    assert policy.handle(Greeted(1)) == [SendLoad(spec("a"))]


def test_loads_go_to_the_worker_one_at_a_time(worker: WorkerPolicy):
    assert worker.handle(LoadWanted(spec("a"))) == [SendLoad(spec("a"))]
    assert worker.handle(LoadWanted(spec("b"))) == []
    assert worker.handle(Succeeded("a", INFO)) == [ConcludeLoad("a"), SendLoad(spec("b"))]


def test_progress_of_a_load_is_kept_within_bounds(worker: WorkerPolicy):
    worker.handle(LoadWanted(spec("a")))
    worker.handle(Advanced("a", 0.4))
    assert worker.models["a"].progress == 0.4
    worker.handle(Advanced("a", 7))
    assert worker.models["a"].progress == 1.0
    worker.handle(Advanced("unknown", 0.1))


def test_a_refused_load_leaves_a_failed_model_and_the_queue_moving(worker: WorkerPolicy):
    fault = Fault("gguf_unsupported", "no")
    worker.handle(LoadWanted(spec("a")))
    worker.handle(LoadWanted(spec("b")))
    assert worker.handle(Refused("a", fault)) == [ConcludeLoad("a", fault), SendLoad(spec("b"))]
    assert worker.models["a"].phase == "failed"


def test_a_crash_ends_requests_and_brings_every_model_back(worker: WorkerPolicy):
    load(worker, "a")
    load(worker, "b")
    ended, restart = worker.handle(Exited(5, KILLED, "sigkill", ("GGML_ASSERT", "abort")))
    assert isinstance(ended, EndRequests)
    cause = "the worker of cpu (pid 100) was killed by SIGKILL; its last words: GGML_ASSERT | abort"
    assert ended.fault == Fault("upstream_failed", cause)
    assert restart == RestartAfter(0.2)
    assert [m.phase for m in worker.models.values()] == ["recovering", "recovering"]
    assert (worker.phase, worker.cause) == ("restarting", cause)

    assert come_back(worker, 5.2, 101) == [SendLoad(spec("a"))]
    assert (worker.pid, worker.restarts, worker.phase) == (101, 1, "ready")
    assert worker.handle(Succeeded("a", INFO)) == [SendLoad(spec("b"))]
    assert worker.handle(Succeeded("b", INFO)) == []
    assert [m.phase for m in worker.models.values()] == ["ready", "ready"]
    assert worker.models["a"].fault is None


def test_the_back_off_doubles_and_the_fourth_crash_in_the_window_is_the_last(worker: WorkerPolicy):
    load(worker, "a")
    delays = []
    for at in (10, 20, 30):
        delays.append(worker.handle(Exited(at, KILLED, "sigkill"))[-1])
        come_back(worker, at + 1, 100 + at)
        worker.handle(Succeeded("a", INFO))
    assert delays == [RestartAfter(0.2), RestartAfter(0.4), RestartAfter(0.8)]
    worker.handle(LoadWanted(spec("late")))
    out = worker.handle(Exited(40, KILLED, "sigkill", ("why",)))
    assert [type(i) for i in out] == [EndRequests, ConcludeLoad]
    assert worker.phase == "failed"
    assert worker.cause is not None
    assert worker.cause.startswith("4 crashes within 10 minutes; the last: the worker of cpu")
    assert worker.cause.endswith("why")
    assert {m.phase for m in worker.models.values()} == {"failed"}
    assert worker.models["a"].fault is not None


def test_old_crashes_are_forgotten(worker: WorkerPolicy):
    for n in range(8):
        at = 300.0 * (n + 1)
        out = worker.handle(Exited(at, KILLED, "sigkill"))
        assert isinstance(out[-1], RestartAfter)
        come_back(worker, at + 1, n)
    assert worker.restarts == 8


def test_the_back_off_has_a_ceiling():
    policy = WorkerPolicy("cpu", Limits(crashes_to_fail=99))
    policy.handle(Begun(0))
    delays = []
    for n in range(12):
        out = policy.handle(Exited(n, "could not be started: no memory", "unstartable"))
        assert isinstance(out[-1], RestartAfter)
        delays.append(out[-1].delay_s)
        policy.handle(RestartDue(n))
    assert delays[:4] == [0.2, 0.4, 0.8, 1.6]
    assert delays[-1] == 30


def test_a_process_that_cannot_even_be_started_counts_as_a_crash():
    policy = WorkerPolicy("cpu", LIMITS)
    policy.handle(Begun(0))
    for at in (1, 2, 3):
        policy.handle(Exited(at, "could not be started: ENOMEM", "unstartable"))
        policy.handle(RestartDue(at))
    policy.handle(Exited(4, "could not be started: ENOMEM", "unstartable"))
    assert policy.phase == "failed"


def test_a_load_that_kills_the_worker_fails_and_is_not_tried_again(worker: WorkerPolicy):
    load(worker, "good")
    worker.handle(LoadWanted(spec("bad")))
    out = worker.handle(Exited(5, "exited with code 9", "exit_9"))
    assert [type(i) for i in out] == [EndRequests, ConcludeLoad, RestartAfter]
    assert come_back(worker, 6, 101) == [SendLoad(spec("good"))]
    assert worker.handle(Succeeded("good", INFO)) == []
    assert worker.models["bad"].phase == "failed"


def test_a_load_that_only_waited_survives_the_crash(worker: WorkerPolicy):
    worker.handle(LoadWanted(spec("first")))
    worker.handle(LoadWanted(spec("second")))
    worker.handle(Exited(5, KILLED, "sigkill"))
    assert come_back(worker, 6, 101) == [SendLoad(spec("second"))]


def test_a_model_whose_reload_keeps_killing_the_worker_is_dropped_for_the_others(
    worker: WorkerPolicy,
):
    load(worker, "bad")
    load(worker, "good")
    worker.handle(Exited(5, KILLED, "sigkill"))
    assert come_back(worker, 6, 101) == [SendLoad(spec("bad"))]
    worker.handle(Exited(7, "exited with code 9", "exit_9"))
    # Once could be chance, but the others go first now.
    assert come_back(worker, 8, 102) == [SendLoad(spec("good"))]
    assert worker.handle(Succeeded("good", INFO)) == [SendLoad(spec("bad"))]
    worker.handle(Exited(9, "exited with code 9", "exit_9"))
    assert worker.models["bad"].phase == "failed"
    assert come_back(worker, 10, 103) == [SendLoad(spec("good"))]


def test_a_step_that_runs_too_long_is_a_hung_worker(worker: WorkerPolicy):
    load(worker, "a")
    assert worker.handle(Reported(5, load_report("a", 10))) == []
    kill, blame, ended = worker.handle(
        Reported(6, load_report("a", 10.5), ("stuck in", "a kernel"))
    )
    assert kill == Kill()
    assert isinstance(blame, Blame)
    assert blame.model == "a"
    assert isinstance(ended, EndRequests)
    assert "hung: a step of 'a' has run 10.5 s (step_timeout_s = 10)" in ended.fault.message
    assert "pid 100" in ended.fault.message
    assert ended.fault.message.endswith("its last words: stuck in | a kernel")
    assert worker.models["a"].phase == "recovering"


def test_silence_is_a_hung_worker(worker: WorkerPolicy):
    worker.handle(Reported(5, load_report("a", 0)))
    for at in range(6, 15):
        assert worker.handle(Ticked(at)) == []
    kill, ended = worker.handle(Ticked(14.5, ("last",)))
    assert kill == Kill()
    assert isinstance(ended, EndRequests)
    assert "no sign of life for 9.5 s" in ended.fault.message
    assert ended.fault.message.endswith("last")


@pytest.mark.parametrize("step_timeout_s", [0.5, 2, 8, 10, 120])
def test_a_stopped_worker_is_found_within_the_step_timeout_though_it_was_idle(
    step_timeout_s: float,
):
    """Whenever it was stopped, and however the ticks fall between its reports."""
    limits = Limits(step_timeout_s=step_timeout_s)
    assert limits.silence_s >= 3 * limits.report_every_s
    policy = WorkerPolicy("cpu", limits)
    for event in (Begun(0), Spawned(0, 100), Greeted(0)):
        policy.handle(event)
    policy.handle(Reported(1, ipc.Progress(1, [])))  # its last, and it is stopped at once
    at = 1 - limits.tick_s / 3
    while not policy.handle(Ticked(at)):
        at += limits.tick_s
    assert at <= 1 + step_timeout_s


def test_time_we_were_not_running_ourselves_is_no_silence(worker: WorkerPolicy):
    worker.handle(Reported(5, load_report("a", 0)))
    worker.handle(Ticked(6))
    assert worker.handle(Ticked(3600)) == []
    assert worker.handle(Ticked(3605)) == []


def test_a_hung_worker_is_restarted_only_when_it_is_dead(worker: WorkerPolicy):
    load(worker, "a")
    worker.handle(Reported(6, load_report("a", 11)))
    assert worker.handle(Reported(7, load_report("a", 12))) == []
    assert worker.handle(Ticked(8)) == []
    assert worker.handle(Greeted(8)) == []
    assert worker.handle(Exited(9, KILLED, "sigkill", ("last",))) == [RestartAfter(0.2)]
    assert worker.cause is not None
    assert "hung" in worker.cause
    assert worker.cause.endswith("last")
    assert come_back(worker, 10, 101) == [SendLoad(spec("a"))]


def test_a_worker_that_never_greets_is_killed():
    policy = WorkerPolicy("cpu", LIMITS)
    policy.handle(Begun(0))
    policy.handle(Spawned(0, 100))
    for at in range(0, 61, 4):
        assert policy.handle(Ticked(at)) == []
    assert policy.handle(Ticked(61))[0] == Kill()
    assert policy.cause is not None
    assert "did not come up within 61 s" in policy.cause


def test_an_unload_of_a_ready_model_goes_through_the_worker(worker: WorkerPolicy):
    load(worker, "a")
    assert worker.handle(UnloadWanted("a")) == [SendUnload("a")]
    assert worker.models["a"].phase == "unloading"
    assert worker.handle(UnloadWanted("a")) == []
    assert worker.handle(Unloaded("a")) == [ConcludeUnload("a")]
    assert worker.models == {}


def test_an_unload_during_a_crash_is_done(worker: WorkerPolicy):
    load(worker, "a")
    worker.handle(UnloadWanted("a"))
    out = worker.handle(Exited(5, KILLED, "sigkill"))
    assert ConcludeUnload("a") in out
    assert come_back(worker, 6, 101) == []


def test_an_unload_of_a_recovering_model_means_it_is_not_loaded_again(worker: WorkerPolicy):
    load(worker, "a")
    worker.handle(Exited(5, KILLED, "sigkill"))
    assert worker.handle(UnloadWanted("a")) == [ConcludeUnload("a")]
    assert come_back(worker, 6, 101) == []


def test_an_unload_during_a_reload_follows_it(worker: WorkerPolicy):
    load(worker, "a")
    worker.handle(Exited(5, KILLED, "sigkill"))
    come_back(worker, 6, 101)
    assert worker.handle(UnloadWanted("a")) == []
    assert worker.handle(Succeeded("a", INFO)) == [SendUnload("a")]
    assert worker.handle(Unloaded("a")) == [ConcludeUnload("a")]


def test_an_unload_of_what_is_not_there_is_done_at_once(worker: WorkerPolicy):
    assert worker.handle(UnloadWanted("ghost")) == [ConcludeUnload("ghost")]


def test_a_failed_device_takes_no_load():
    policy = WorkerPolicy("cpu", Limits(crashes_to_fail=1))
    policy.handle(Begun(0))
    policy.handle(Exited(1, "exited with code 3", "exit_3", ("boom",)))
    (concluded,) = policy.handle(LoadWanted(spec("a")))
    assert isinstance(concluded, ConcludeLoad)
    assert concluded.fault is not None
    assert concluded.fault.code == "no_capacity"
    assert "boom" in concluded.fault.message
    assert policy.models == {}


def test_a_stop_ends_requests_and_operations_and_nothing_is_restarted(worker: WorkerPolicy):
    load(worker, "a")
    worker.handle(UnloadWanted("a"))
    worker.handle(LoadWanted(spec("b")))
    out = worker.handle(StopWanted())
    assert [type(i) for i in out] == [EndRequests, ConcludeUnload, ConcludeLoad]
    assert worker.handle(Exited(9, "exited with code 0", "exit_0")) == []
    assert worker.handle(RestartDue(10)) == []
    assert worker.phase == "stopped"


# who is to blame


@pytest.mark.parametrize(
    ("kind", "blames"),
    [
        ("sigsegv", True),
        ("sigabrt", True),
        ("exit_70", True),
        ("garbage", True),
        ("sigkill", False),
        ("sigterm", False),
        ("exit_0", False),
        ("unstartable", False),
    ],
)
def test_only_what_a_process_brings_on_itself_blames_what_it_computed(
    worker: WorkerPolicy, kind: str, blames: bool
):
    load(worker, "a")
    out = worker.handle(Exited(5, "ended", kind))
    assert [type(i) for i in out[:-1]] == ([Blame] if blames else []) + [EndRequests]
    assert worker.ends == {kind: 1}


def test_a_load_in_progress_is_blamed_before_any_prompt(worker: WorkerPolicy):
    load(worker, "a")
    worker.handle(LoadWanted(spec("b")))
    out = worker.handle(Exited(5, "was killed by SIGSEGV", "sigsegv"))
    assert [type(i) for i in out] == [EndRequests, ConcludeLoad, RestartAfter]


def test_a_silent_worker_was_stopped_and_blames_nobody(worker: WorkerPolicy):
    load(worker, "a")
    worker.handle(Reported(5, load_report("a", 0)))
    for at in range(6, 15):
        worker.handle(Ticked(at))
    assert [type(i) for i in worker.handle(Ticked(14.5))] == [Kill, EndRequests]
    assert worker.ends == {"hung_silent": 1}

"""How the traces of a worker's policy begin: a worker that is up, a model that is loaded."""

from __future__ import annotations

from cortex_core.wire import ipc
from neuron.worker_events import (
    Begun,
    ConcludeLoad,
    Greeted,
    LoadSpec,
    LoadWanted,
    RestartDue,
    SendLoad,
    Spawn,
    Spawned,
    Succeeded,
)
from neuron.worker_policy import Limits, WorkerPolicy

LIMITS = Limits(step_timeout_s=10, hello_timeout_s=60)
INFO = ipc.ModelInfo("test", 512, 512, 2, 100, 1000, 10, 20, 0.1)
KILLED = "was killed by SIGKILL"


def spec(model: str) -> LoadSpec:
    return LoadSpec(model, f"/m/{model}.gguf", ipc.EngineParams())


def load_report(model: str, step_s: float) -> ipc.Progress:
    return ipc.Progress(1, [ipc.ModelLoad(model, 1, 1, 1, 0, step_s)])


def up() -> WorkerPolicy:
    """A worker that is up."""
    policy = WorkerPolicy("cpu", LIMITS)
    assert policy.handle(Begun(0)) == [Spawn()]
    assert policy.handle(Spawned(0, 100)) == []
    assert policy.handle(Greeted(1)) == []
    assert policy.phase == "ready"
    return policy


def load(policy: WorkerPolicy, model: str) -> None:
    assert policy.handle(LoadWanted(spec(model))) == [SendLoad(spec(model))]
    assert policy.handle(Succeeded(model, INFO)) == [ConcludeLoad(model)]


def come_back(policy: WorkerPolicy, at: float, pid: int) -> list[object]:
    assert policy.handle(RestartDue(at)) == [Spawn()]
    policy.handle(Spawned(at, pid))
    return list(policy.handle(Greeted(at)))

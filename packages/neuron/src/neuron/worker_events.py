"""What can happen to one device's worker, and what can be done about it, as values.

Events go into `worker_policy`, instructions come out; `supervisor` turns the world into the one and
the other into the world. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import msgspec

from cortex_core.errors import Fault
from cortex_core.wire import ipc

__all__ = [
    "Advanced",
    "Begun",
    "Blame",
    "ConcludeLoad",
    "ConcludeRestart",
    "ConcludeUnload",
    "EndRequests",
    "Event",
    "Exited",
    "Greeted",
    "Instruction",
    "Kill",
    "LoadSpec",
    "LoadWanted",
    "Quiesced",
    "Refused",
    "Reported",
    "RestartAfter",
    "RestartDue",
    "RestartWanted",
    "SendLoad",
    "SendShutdown",
    "SendUnload",
    "Spawn",
    "Spawned",
    "StopWanted",
    "Succeeded",
    "Ticked",
    "UnloadWanted",
    "Unloaded",
]


class LoadSpec(msgspec.Struct, frozen=True):
    model: str
    path: str
    params: ipc.EngineParams


# events


class Begun(msgspec.Struct, frozen=True):
    at: float


class Spawned(msgspec.Struct, frozen=True):
    at: float
    pid: int


class Greeted(msgspec.Struct, frozen=True):
    at: float


class Exited(msgspec.Struct, frozen=True):
    """`how`: "was killed by SIGKILL", "exited with code 1", "could not be started: …". `kind` is
    the same as one of a few words, to count by: sigkill, exit_1, unstartable."""

    at: float
    how: str
    kind: str
    stderr: tuple[str, ...] = ()


class RestartDue(msgspec.Struct, frozen=True):
    at: float


class Reported(msgspec.Struct, frozen=True):
    """`stderr`: the last lines so far; they go with the verdict, should there be one."""

    at: float
    progress: ipc.Progress
    stderr: tuple[str, ...] = ()


class Ticked(msgspec.Struct, frozen=True):
    """`stderr` as in Reported."""

    at: float
    stderr: tuple[str, ...] = ()


class LoadWanted(msgspec.Struct, frozen=True):
    spec: LoadSpec


class Advanced(msgspec.Struct, frozen=True):
    model: str
    fraction: float


class Succeeded(msgspec.Struct, frozen=True):
    model: str
    info: ipc.ModelInfo


class Refused(msgspec.Struct, frozen=True):
    model: str
    fault: Fault


class UnloadWanted(msgspec.Struct, frozen=True):
    model: str


class Unloaded(msgspec.Struct, frozen=True):
    model: str


class RestartWanted(msgspec.Struct, frozen=True):
    """A planned one, of a worker that is well: new requests wait for the new process."""


class Quiesced(msgspec.Struct, frozen=True):
    """No request runs in the worker any more, and none can come."""

    at: float


class StopWanted(msgspec.Struct, frozen=True):
    pass


Event = (
    Begun
    | Spawned
    | Greeted
    | Exited
    | RestartDue
    | Reported
    | Ticked
    | LoadWanted
    | Advanced
    | Succeeded
    | Refused
    | UnloadWanted
    | Unloaded
    | RestartWanted
    | Quiesced
    | StopWanted
)

# instructions


class Spawn(msgspec.Struct, frozen=True):
    """`restores`: with the sequences that the process before has saved."""

    restores: bool = False


class Kill(msgspec.Struct, frozen=True):
    """End the process now and hear nothing more from it but its exit."""


class RestartAfter(msgspec.Struct, frozen=True):
    delay_s: float


class SendLoad(msgspec.Struct, frozen=True):
    spec: LoadSpec


class SendUnload(msgspec.Struct, frozen=True):
    model: str


class SendShutdown(msgspec.Struct, frozen=True):
    """Save the cached sequences and end."""


class Blame(msgspec.Struct, frozen=True):
    """What the worker (or its engine of `model`) was computing may have brought it down. Comes
    before the EndRequests."""

    cause: str
    model: str | None = None


class EndRequests(msgspec.Struct, frozen=True):
    fault: Fault


class ConcludeLoad(msgspec.Struct, frozen=True):
    """A wanted load has ended. `fault` None = ready."""

    model: str
    fault: Fault | None = None


class ConcludeUnload(msgspec.Struct, frozen=True):
    model: str


class ConcludeRestart(msgspec.Struct, frozen=True):
    """A wanted restart has ended. `fault` None = the new process has all the models."""

    fault: Fault | None = None


Instruction = (
    Spawn
    | Kill
    | RestartAfter
    | SendLoad
    | SendUnload
    | SendShutdown
    | Blame
    | EndRequests
    | ConcludeLoad
    | ConcludeUnload
    | ConcludeRestart
)

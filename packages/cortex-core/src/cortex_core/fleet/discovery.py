"""What a neuron says about itself: its devices, its workers, its models.

`NodeState` is the whole truth of one node at one version; it is small, so every change is sent
whole and nothing has to be patched together by the reader.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cortex_core.errors import Fault

__all__ = [
    "DeviceState",
    "ModelLimit",
    "ModelPhase",
    "ModelState",
    "NodeState",
    "Operation",
    "WorkerPhase",
    "WorkerState",
]

WorkerPhase = Literal["starting", "ready", "restarting", "failed", "stopped"]
ModelPhase = Literal["loading", "ready", "draining", "unloading", "recovering", "failed"]


class WorkerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process behind a device. `cause`: why it last died, with its last stderr lines."""

    phase: WorkerPhase
    pid: int | None = None
    restarts: int = 0
    cause: str | None = None


class DeviceState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One device. Bytes; percent; degrees Celsius. `None`: the driver would not say."""

    id: str  # "cuda:0", "cpu", "cpu:1"
    kind: Literal["cuda", "cpu"]
    name: str
    worker: WorkerState
    index: int | None = None
    uuid: str | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    compute_capability: str | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    driver_version: str | None = None
    cuda_version: str | None = None


class ModelLimit(msgspec.Struct, frozen=True):
    """Tokens per sequence: prompt and completion together."""

    context: int


class ModelState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model on one device. `context` is tokens per sequence, `cells` what the whole KV cache
    holds. `memory_bytes`, `weights_bytes`, `kv_bytes` and `compute_bytes` are measured; see
    `cortex_core.wire.ipc.ModelInfo`. `limit` is what a
    client may ask for. `progress` is 0 to 1 while loading; `fault` says why a model is failed or
    recovering."""

    id: str
    device: str
    phase: ModelPhase
    path: str
    file_bytes: int = 0
    memory_bytes: int = 0
    context: int = 0
    parallel: int = 0
    architecture: str = ""
    parameters: int = 0
    progress: float | None = None
    running: int = 0
    waiting: int = 0
    load_s: float | None = None
    fault: Fault | None = None
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    kv: str = ""
    kv_type: str = ""
    cells: int = 0
    limit: ModelLimit | None = None


class NodeState(msgspec.Struct, frozen=True):
    """One node at one version. `boot` changes when the neuron restarts; `version` grows by one
    with every change within a boot. Sent whole as the data of each `state` event on /events.
    `holdings` grows only when a model gets or loses its place, so that an order to load or unload
    can say what it was decided upon."""

    name: str
    boot: str
    version: int
    draining: bool
    devices: list[DeviceState]
    models: list[ModelState]
    holdings: int = 0


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """An asynchronous load or unload of a `model`, or restart of a `device`'s worker. Ended when
    `phase` is done or failed."""

    id: str
    kind: Literal["load", "unload", "restart"]
    model: str
    phase: Literal["running", "done", "failed"]
    progress: float = 0.0
    result: ModelState | None = None
    fault: Fault | None = None
    device: str = ""

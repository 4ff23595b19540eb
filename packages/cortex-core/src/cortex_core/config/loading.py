"""How a model may be asked to be loaded: in a load request, and for a default model."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cortex_core.wire.ipc import KvType, SplitMode

__all__ = [
    "Batch",
    "Cells",
    "Context",
    "GpuLayers",
    "Kv",
    "LoadOptions",
    "MainGpu",
    "Parallel",
    "Share",
    "Threads",
]

_MOST = 2**31 - 1  # llama.cpp counts in 32 bits

Context = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Parallel = Annotated[int, msgspec.Meta(ge=1, le=256)]
Batch = Annotated[int, msgspec.Meta(ge=32, le=16384)]
Threads = Annotated[int, msgspec.Meta(ge=0, le=1024)]
Cells = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
GpuLayers = Annotated[int, msgspec.Meta(ge=-1, le=_MOST)]
MainGpu = Annotated[int, msgspec.Meta(ge=0, le=127)]
Share = Annotated[float, msgspec.Meta(ge=0)]
Kv = Literal["auto", "unified", "partitioned"]


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the asker of a load cares about; None = the [engine] default. The meanings are those
    of `cortex_core.wire.ipc.EngineParams`, whose fields they become."""

    context: Context | None = None
    parallel: Parallel | None = None
    batch: Batch | None = None
    threads: Threads | None = None
    gpu_layers: GpuLayers | None = None
    kv: Kv | None = None
    cells: Cells | None = None
    kv_type: KvType | None = None
    flash_attention: bool | None = None
    split_mode: SplitMode | None = None
    tensor_split: list[Share] | None = None
    main_gpu: MainGpu | None = None
    mmap: bool | None = None
    mlock: bool | None = None

"""How a model may be asked to be loaded: in a load request, for a default model, and in the
catalogue."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from cortex_core.envelopes.sampling import Samplers, SamplingParameters, check_ranges
from cortex_core.errors import InvalidRequest
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
    "SamplingDefaults",
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
    repack: bool | None = None


class SamplingDefaults(Samplers, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a request to this model gets where it gives no value of its own; None = what the
    model's makers recommend, or the fixed default."""

    @property
    def given(self) -> dict[str, Any]:
        """The values that are given, by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not None}

    def check(self) -> None:
        """What a request may not ask for is no default either. Raises InvalidRequest that names
        `sampling.` and the value at fault."""
        try:
            check_ranges(SamplingParameters(**self.given))
        except InvalidRequest as error:
            raise InvalidRequest(
                f"sampling.{error.message}", param=f"sampling.{error.param}"
            ) from None

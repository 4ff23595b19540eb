"""Before a load: does the model go with its options, what will it take, and is there room? Pure.

Nothing is touched here. What is decided (the context, the layout) is sent to the worker as
definite numbers, so that what was promised is what is loaded.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from cortex_core.errors import InvalidRequest, PreflightFailed
from cortex_core.wire.ipc import EngineParams, KvLayout
from neuron.models.footprint import Footprint, Room, footprint_of, largest_context
from neuron.models.gguf import GgufHeader
from neuron.models.kind import kind_of
from neuron.models.layout import (
    CELL_BLOCK,
    SMALL_FILE_BYTES,
    KvPlan,
    default_flash_attention,
    default_repack,
    flash_attention_of,
    is_mapped,
    plan_kv,
)
from neuron.models.pooling import PassPlan, plan_passes, pools_last
from neuron.models.shape import shape_of

__all__ = ["DEFAULT_CONTEXT", "DeviceEstimate", "Estimate", "Preflight"]

DEFAULT_CONTEXT = 32_768
"""Tokens per sequence that a load gets unasked, at most: what long sessions of agents come to."""

_UNKNOWN_CONTEXT = 8192  # where neither the model nor the driver says anything
_DEFAULT_KV_SHARE = 0.5  # of what the weights leave free, for a context nobody asked for
_DEFAULT_MARGIN = 0.9  # of what is free, for the same
_USEFUL_CONTEXT = 4096
_QUANTISED_BLOCK = 32


class DeviceEstimate(msgspec.Struct, frozen=True):
    """Bytes. `free_bytes` and `memory_bytes` None: the driver would not say."""

    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    runtime_bytes: int
    total_bytes: int
    free_bytes: int | None
    memory_bytes: int | None


class Estimate(msgspec.Struct, frozen=True):
    """What a load would take, and whether it would be let. `largest_context` per sequence that
    fits; 0: none does."""

    model: str
    device: str
    context: int
    parallel: int
    kv: KvLayout
    kv_type: str
    cells: int
    flash_attention: bool
    repack: bool
    weights_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    compute_bytes: int
    total_bytes: int
    devices: list[DeviceEstimate]
    fits: bool
    largest_context: int


class Preflight:
    """One model with one set of options on one device. `host` is the host's memory, `gpus` what
    the device's worker sees; without GPUs the device is the CPU. `cpu_flags`: what the processor
    can do. Raises InvalidRequest, naming the option that the model cannot have."""

    def __init__(
        self,
        header: GgufHeader,
        params: EngineParams,
        host: Room,
        gpus: Sequence[Room] = (),
        *,
        cpu_flags: Container[str] = (),
    ) -> None:
        self.shape = shape_of(header)
        self._is_pooler = kind_of(header.metadata) != "generate"
        self._is_split = pools_last(header.metadata)
        self._path = header.path
        self._host = host
        self._gpus = tuple(gpus)
        self._is_cpu = not gpus
        self._params = params
        self._is_small = self._is_cpu and header.file_bytes < SMALL_FILE_BYTES
        self._cpu_flags = cpu_flags
        self._check_kv_type()
        most = self.shape.context or _UNKNOWN_CONTEXT
        if params.context:
            self._plan(params.context)  # what cannot be, is refused whatever fits
            context = params.context
        else:
            context = self._default_context(most)
        plan = self._plan(context)
        mmap = is_mapped(params, is_cpu=self._is_cpu)
        self.params = replace(params, context=context, mmap=mmap)
        if isinstance(plan, KvPlan):
            self.params = replace(
                self.params,
                kv=plan.layout,
                flash_attention=self._flash_attention(plan),
                repack=self._repack(plan, header.metadata.get("general.file_type")),
            )
        self.footprint = self._footprint(context)

    def check_room(self, model: str) -> None:
        """Raises PreflightFailed (insufficient_memory) with what is needed and what there is."""
        short = self._short(self.footprint)
        if not short:
            return
        hint = self.largest_context
        context = self.params.context
        advice = (
            f"; a context of {hint} would fit"
            if 0 < hint < context
            else "; no context is small enough"
        )
        raise PreflightFailed(
            f"{model}: not enough memory for {self.params.parallel} x {context} tokens: "
            + ", ".join(
                f"{device} needs {_mib(need)} and has {_mib(have)} free"
                for device, need, have in short
            )
            + advice,
            kind="insufficient_memory",
            param="model",
        )

    @property
    def largest_context(self) -> int:
        """Tokens per sequence that fit, up to what the model was trained for; 0 = none."""
        most = self.shape.context or max(self.params.context, _UNKNOWN_CONTEXT)
        return largest_context(most, self._fits)

    def estimate(self, model: str, device: str) -> Estimate:
        plan, footprint = self._plan(self.params.context), self.footprint
        rooms = [*self._gpus, self._host]
        return Estimate(
            model=model,
            device=device,
            context=plan.context,
            parallel=self.params.parallel,
            kv=plan.layout if isinstance(plan, KvPlan) else "unified",
            kv_type=self.params.kv_type,
            cells=plan.cells if isinstance(plan, KvPlan) else 0,
            flash_attention=self._has_flash_attention(plan),
            repack=self.params.repack is not False,
            weights_bytes=footprint.weights_bytes,
            kv_bytes_per_token=footprint.kv_bytes_per_token,
            kv_bytes=footprint.kv_bytes,
            compute_bytes=footprint.compute_bytes,
            total_bytes=footprint.total_bytes,
            devices=[
                DeviceEstimate(
                    taken.device,
                    taken.weights_bytes,
                    taken.kv_bytes,
                    taken.compute_bytes,
                    taken.runtime_bytes,
                    taken.total_bytes,
                    room.free_bytes,
                    room.total_bytes,
                )
                for taken, room in zip(footprint.devices, rooms, strict=True)
            ],
            fits=not self._short(footprint),
            largest_context=self.largest_context,
        )

    # how

    def _check_kv_type(self) -> None:
        kind = self._params.kv_type
        widths = (self.shape.head_width, self.shape.value_head_width)
        if kind != "f16" and self.shape.has_cells and any(w % _QUANTISED_BLOCK for w in widths):
            raise InvalidRequest(
                f"kv_type: {kind} packs {_QUANTISED_BLOCK} numbers, and a head of this model has "
                f"{widths[0]}; use f16",
                param="kv_type",
            )

    def _plan(self, context: int) -> KvPlan | PassPlan:
        if self._is_pooler:
            return plan_passes(context, self.shape.context or context, is_split=self._is_split)
        return plan_kv(
            self._params,
            context=context,
            can_trim=self.shape.can_trim,
            is_cpu=self._is_cpu,
        )

    def _flash_attention(self, plan: KvPlan | PassPlan) -> bool | None:
        default = None
        if isinstance(plan, KvPlan):
            default = default_flash_attention(
                plan, heads=self.shape.heads, is_cpu=self._is_cpu, is_small=self._is_small
            )
        return flash_attention_of(self._params, default=default)

    def _has_flash_attention(self, plan: KvPlan | PassPlan) -> bool:
        """Not forbidden means used: both llama.cpp's CPU and its CUDA backend have it."""
        return self._flash_attention(plan) is not False

    def _repack(self, plan: KvPlan, file_type: object) -> bool:
        if self._params.repack is not None:
            return self._params.repack
        return default_repack(
            context=plan.context,
            file_type=file_type,
            flags=self._cpu_flags,
            is_cpu=self._is_cpu,
            is_small=self._is_small,
        )

    def _footprint(self, context: int) -> Footprint:
        plan = self._plan(context)
        return footprint_of(
            self.shape,
            self._params,
            plan,
            flash_attention=self._has_flash_attention(plan),
            host=self._host.device,
            gpus=self._gpus,
        )

    def _default_context(self, most: int) -> int:
        """What fits with a margin, and leaves half of the memory for other things; where nothing
        does, the least there is, for the refusal to speak of."""
        if self._is_pooler:
            return self._plan(0).context
        most = min(most, DEFAULT_CONTEXT)
        if self._params.cells:
            most = min(most, self._params.cells)
        if all(room.free_bytes is None for room in (self._host, *self._gpus)):
            return min(most, _UNKNOWN_CONTEXT)
        found = largest_context(most, lambda context: self._fits(context, modestly=True))
        useful = min(most, _USEFUL_CONTEXT)
        if found < useful:  # tight: rather no room for others than a context nobody can use
            found = largest_context(useful, self._fits)
        return found or min(most, CELL_BLOCK)

    def _fits(self, context: int, *, modestly: bool = False) -> bool:
        try:
            footprint = self._footprint(context)
        except InvalidRequest:  # more than the cells that were asked for
            return False
        return not self._short(footprint, modestly=modestly)

    def _short(self, footprint: Footprint, *, modestly: bool = False) -> list[tuple[Any, int, int]]:
        """(device, needed, free) where it is not enough."""
        short: list[tuple[Any, int, int]] = []
        for taken, room in zip(footprint.devices, [*self._gpus, self._host], strict=True):
            free = room.free_bytes
            if free is None:
                continue
            is_short = taken.total_bytes > free * (_DEFAULT_MARGIN if modestly else 1.0)
            if modestly and taken.kv_bytes > _DEFAULT_KV_SHARE * (free - taken.weights_bytes):
                is_short = taken.kv_bytes > 0
            if is_short and taken.total_bytes > 0:
                short.append((taken.device, taken.total_bytes, free))
        return short


def _mib(size: int) -> str:
    return f"{max(size, 0) / 2**20:,.0f} MiB"

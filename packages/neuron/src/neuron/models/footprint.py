"""What memory a load will take, device by device, from the GGUF header alone. Pure.

Of llama.cpp's buffers: weights, KV cache (and recurrent state), compute and output buffers. On a
CPU, weights that are mapped count once, though a kernel's own arrangement of them may hold some a
second time: the mapped ones of those are never read again, and the system takes them back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import msgspec

from cortex_core.wire.ipc import EngineParams
from neuron.models.gguf import type_bytes
from neuron.models.graph import GraphSize, compute_bytes
from neuron.models.layout import CELL_BLOCK, KvPlan, allocated_cells, step_tokens_of
from neuron.models.pooling import PassPlan
from neuron.models.shape import Layer, ModelShape

__all__ = ["DeviceFootprint", "Footprint", "Room", "footprint_of", "largest_context"]

_F32 = 4
_LEAST_BATCH = 16
_GPU_RUNTIME_BYTES = 512 * 1024 * 1024
"""What CUDA and its libraries take of a GPU for themselves, on any model's behalf."""


class Room(msgspec.Struct, frozen=True):
    """A GPU the load may use, or the host. `free_bytes` None: the driver would not say."""

    device: str
    free_bytes: int | None = None
    total_bytes: int | None = None


class DeviceFootprint(msgspec.Struct, frozen=True):
    device: str
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    runtime_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.runtime_bytes


class Footprint(msgspec.Struct, frozen=True):
    """The host last. `kv_bytes_per_token` of one sequence; a recurrent state is not per token and
    is in `kv_bytes` alone."""

    kv_bytes_per_token: int
    devices: tuple[DeviceFootprint, ...]

    @property
    def weights_bytes(self) -> int:
        return sum(device.weights_bytes for device in self.devices)

    @property
    def kv_bytes(self) -> int:
        return sum(device.kv_bytes for device in self.devices)

    @property
    def compute_bytes(self) -> int:
        return sum(device.compute_bytes for device in self.devices)

    @property
    def total_bytes(self) -> int:
        return sum(device.total_bytes for device in self.devices)


def footprint_of(
    shape: ModelShape,
    params: EngineParams,
    plan: KvPlan | PassPlan,
    *,
    flash_attention: bool,
    host: str,
    gpus: Sequence[Room] = (),
) -> Footprint:
    """`host`: what the host's memory is called; `gpus`: those the worker sees, none on a CPU.
    A PassPlan is an embedding model's."""
    return _Sum(shape, params, plan, flash_attention, [*(gpu.device for gpu in gpus), host]).run(
        _shares(params, gpus)
    )


def largest_context(most: int, fits: Callable[[int], bool]) -> int:
    """The largest context up to `most` for which `fits`, in whole blocks or `most` itself; 0 when
    none does. `fits` of less is true where `fits` of more is."""
    if fits(most):
        return most
    low, high = 0, -(-most // CELL_BLOCK)  # in blocks: low fits (or is nothing), high does not
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * CELL_BLOCK):
            low = middle
        else:
            high = middle
    return low * CELL_BLOCK


def _shares(params: EngineParams, gpus: Sequence[Room]) -> list[float]:
    """Of the layers on GPUs, where each GPU's end, as a part of 1; empty without GPUs."""
    if not gpus:
        return []
    if params.split_mode == "none":
        weights = [float(index == params.main_gpu) for index in range(len(gpus))]
    elif params.tensor_split:
        weights = [*params.tensor_split, *(0.0 for _ in gpus)][: len(gpus)]
    else:
        weights = [float(gpu.free_bytes or 0) for gpu in gpus]
    total = sum(weights)
    if not total:
        weights, total = [1.0] * len(gpus), float(len(gpus))
    return list(accumulate(weight / total for weight in weights))


class _Sum:
    def __init__(
        self,
        shape: ModelShape,
        params: EngineParams,
        plan: KvPlan | PassPlan,
        flash_attention: bool,
        devices: list[str],
    ) -> None:
        self._shape = shape
        self._params = params
        self._plan = plan
        self._flash_attention = flash_attention
        self._devices = devices
        self._host = len(devices) - 1
        self._weights = [0] * len(devices)
        self._kv = [0] * len(devices)
        self._compute = [0] * len(devices)

    def run(self, shares: list[float]) -> Footprint:
        shape = self._shape
        units = len(shape.layers) + 1  # the output counts as a layer
        asked = self._params.gpu_layers
        on_gpu = min(units if asked < 0 else asked, units) if shares else 0
        first = units - on_gpu

        def device_of(layer: int) -> int:
            if layer < first:
                return self._host
            found = bisect_right(shares, (layer - first) / on_gpu)
            return min(found, self._host - 1)

        at_output = device_of(units - 1)
        self._weights[self._host] += shape.input_bytes
        self._weights[at_output] += shape.output_bytes
        if shape.is_tied and at_output != self._host:
            self._weights[at_output] += shape.input_bytes  # looked up here, multiplied there
        used = {at_output}
        for index, layer in enumerate(shape.layers):
            device = device_of(index)
            used.add(device)
            self._weights[device] += layer.size_bytes
            self._kv[device] += self._cell_bytes(layer) * self._cells + self._state_bytes(layer)
        self._add_compute(used)
        return Footprint(
            sum(self._cell_bytes(layer) for layer in shape.layers),
            tuple(
                DeviceFootprint(
                    name,
                    self._weights[at],
                    self._kv[at],
                    self._compute[at],
                    _GPU_RUNTIME_BYTES if at in used - {self._host} else 0,
                )
                for at, name in enumerate(self._devices)
            ),
        )

    @property
    def _cells(self) -> int:
        plan = self._plan
        if isinstance(plan, KvPlan):
            return allocated_cells(plan)
        return -(-max(plan.context, plan.rows) // CELL_BLOCK) * CELL_BLOCK

    def _cell_bytes(self, layer: Layer) -> int:
        if not layer.has_cells:
            return 0
        kind = self._params.kv_type
        value = layer.value
        if not self._flash_attention and value:
            # Kept transposed then, and as wide as the widest.
            value = max(other.value for other in self._shape.layers)
        return type_bytes(kind, layer.key) + type_bytes(kind, value)

    def _state_bytes(self, layer: Layer) -> int:
        state = layer.recurrence
        if state is None:
            return 0
        return _F32 * (state.history + state.state) * self._params.parallel

    def _add_compute(self, used: set[int]) -> None:
        size = self._graph_size()
        whole = compute_bytes(self._shape, size)
        for device in used:
            self._compute[device] += whole
        if self._host not in used:
            # Tokens are looked up here, and the inputs of the GPUs' graph are prepared.
            mask = (2 if size.flash_attention else _F32) * size.cells * size.tokens
            self._compute[self._host] += _F32 * self._shape.width * size.tokens + mask
        row = self._shape.vocabulary
        if isinstance(self._plan, PassPlan):
            row += self._shape.width  # and every token's vector
        self._compute[self._host] += _F32 * row * size.outputs

    def _graph_size(self) -> GraphSize:
        plan, params = self._plan, self._params
        if isinstance(plan, PassPlan):
            return GraphSize(plan.rows, self._cells, 1, plan.rows, self._flash_attention)
        parts = 1 if plan.layout == "unified" else plan.parallel
        batch = min(max(params.batch, plan.parallel, _LEAST_BATCH), self._cells)
        step = step_tokens_of(
            plan,
            heads=self._shape.heads,
            flash_attention=self._flash_attention,
            is_cpu=self._host == 0,
        )
        tokens = min(batch, step)
        outputs = min(tokens, plan.parallel)
        return GraphSize(
            tokens, self._cells // parts, plan.parallel, outputs, self._flash_attention
        )

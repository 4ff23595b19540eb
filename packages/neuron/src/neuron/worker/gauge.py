"""What a load took of memory, measured: llama.cpp's buffers, and what the process or device holds
more than before.

Of weights that a kernel laid out anew, the mapped originals are not counted: nothing reads them
any more, and the system takes their pages back when it needs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from neuron.worker import llama

__all__ = ["Gauge", "Measured"]

_MAPPED = "CPU_Mapped"
_KV = ("KV", "RS", "state")
_HELD = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


class Measured(msgspec.Struct, frozen=True):
    """Bytes. `compute_bytes` includes the output buffer. `memory_bytes` on a CPU: memory of its
    own that the process has touched, and the mapped weights it computes with, or llama.cpp's
    buffers if these are more; on a GPU: what has become of its free memory."""

    memory_bytes: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


class Gauge:
    """Made before a load, on the thread that loads. Loads of one process must not overlap.
    `parked_bytes` is what the process holds of parked sequences: other models' park theirs while
    this one loads, and a conversation may be larger than a model."""

    def __init__(self, *, is_cpu: bool, parked_bytes: Callable[[], int]) -> None:
        self._is_cpu = is_cpu
        self._parked_bytes = parked_bytes
        llama.take_buffers()
        self._before = self._held()
        self._mapped_bytes = 0
        self._weights_bytes = 0

    def model_loaded(self, size_bytes: int) -> None:
        """The weights are there, `size_bytes` of tensors, and no context yet."""
        weights = [buffer for buffer in llama.take_buffers() if buffer.kind == "model"]
        mapped = sum(b.size_bytes for b in weights if b.memory == _MAPPED)
        others = [b for b in weights if b.memory != _MAPPED]
        anew = sum(b.size_bytes for b in others if b.memory.startswith("CPU_"))
        copied = sum(b.size_bytes for b in others)
        # The mapped range has gaps where tensors were laid out anew.
        left = max(size_bytes - copied, mapped - anew) if anew else mapped
        self._mapped_bytes = min(left, mapped)
        self._weights_bytes = copied + self._mapped_bytes

    def read(self) -> Measured:
        """The one context is there, and has been used once."""
        of_context = llama.take_buffers()
        kv_bytes = sum(b.size_bytes for b in of_context if b.kind in _KV)
        compute_bytes = sum(b.size_bytes for b in of_context if b.kind in ("compute", "output"))
        memory_bytes = max(self._held() - self._before, 0)
        if self._is_cpu:
            # What an earlier model has left is still the process's, and does not grow when it is
            # taken again; and a buffer that no batch has filled yet is going to be.
            buffers = self._weights_bytes + kv_bytes + compute_bytes
            memory_bytes = max(memory_bytes + self._mapped_bytes, buffers)
        return Measured(memory_bytes, self._weights_bytes, kv_bytes, compute_bytes)

    def _held(self) -> int:
        if not self._is_cpu:
            return -llama.gpu_free_bytes()
        status = Path("/proc/self/status").read_text()
        held = 1024 * sum(int(kilobytes) for kilobytes in _HELD.findall(status))
        return held - self._parked_bytes()

"""The thin, typed face over llama.cpp's C API. Nothing else in the package imports llama_cpp.

Owns handles and buffers; holds no policy and never logs on its own account. A Model may be read
from any thread; a Context and its samplers belong to one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

# How often GNU OpenMP's threads look for the others at a barrier before they sleep; read when the
# library is loaded, with llama.cpp. Hundreds of barriers make up a step. Ten thousand, 0.1 ms,
# outlast what a thread is usually late by; a thousand do not, and with more the others hold their
# cores while the parent, say, has that of the missing one. Where cores are shared for longer, see
# `neuron.worker.wait_policy`.
_SPINS = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
_has_spins = not _SPINS & os.environ.keys()  # or whoever started us has decided
if _has_spins:
    os.environ["GOMP_SPINCOUNT"] = "10000"

from llama_cpp import llama_cpp as lib  # noqa: E402

if _has_spins:
    del os.environ["GOMP_SPINCOUNT"]  # it is nobody's business who may be started from here

if TYPE_CHECKING:
    from neuron.worker.vocabulary import Vocabulary

__all__ = [
    "Buffer",
    "Context",
    "LlamaError",
    "Model",
    "log_to",
    "openmp",
    "start",
    "take_buffers",
    "versions",
]

Int32s = npt.NDArray[np.int32]

MAX_SEQUENCES = int(lib.llama_max_parallel_sequences())
_INFO, _WARN, _ERROR, _CONTINUED = 2, 3, 4, 5  # ggml_log_level
_EXPECTED = re.compile(r"adding \d+ dummy tokens$")  # see `_without_vocabulary`
_BUFFER = re.compile(r"(\S+) +(\w+) buffer size += +([0-9.]+) MiB")


class LlamaError(RuntimeError):
    """A call failed; `lines` are the warnings and errors llama.cpp logged meanwhile."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.lines = tuple(lines)


class Buffer(NamedTuple):
    """One that llama.cpp allocated: what for ("model", "KV", "RS", "output", "compute"), and in
    which of a device's kinds of memory ("CPU", "CPU_Mapped", "CUDA0", "CUDA_Host", ...)."""

    memory: str
    kind: str
    size_bytes: int


# The log: llama.cpp has one callback per process; lines are told apart by the thread they come on.


class _ThreadLog(threading.local):
    prefix = "llama.cpp"
    level = 0

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=12)
        self.buffers: deque[Buffer] = deque(maxlen=256)


_thread_log = _ThreadLog()


@contextlib.contextmanager
def log_to(prefix: str) -> Iterator[None]:
    """Lines logged on this thread are prefixed with `prefix` on stderr."""
    _thread_log.prefix = prefix
    try:
        yield
    finally:
        del _thread_log.prefix


def take_lines() -> list[str]:
    """The last warnings and errors of this thread, oldest first; asking empties the list."""
    lines = list(_thread_log.lines)
    _thread_log.lines.clear()
    return lines


def take_buffers() -> list[Buffer]:
    """The buffers allocated on this thread since it was last asked. llama.cpp tells their sizes
    in its log alone, to a hundredth of a MiB."""
    buffers = list(_thread_log.buffers)
    _thread_log.buffers.clear()
    return buffers


@lib.llama_log_callback
def _on_log(level: int, text: bytes, _: object) -> None:
    log = _thread_log
    if level == _CONTINUED:
        level = log.level
    log.level = level
    if level == _INFO and (found := _BUFFER.search(text.decode("utf-8", "replace"))):
        log.buffers.append(Buffer(found[1], found[2], round(float(found[3]) * 2**20)))
    if level not in (_WARN, _ERROR):
        return
    for line in text.decode("utf-8", "replace").splitlines():
        if (line := line.strip()) and not _EXPECTED.search(line):
            log.lines.append(line)
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"{log.prefix}: {line}\n")


_extra_kernels = True


def start(*, extra_kernels: bool = True) -> None:
    """Initialise the backends, once per process. `extra_kernels`: weights may be laid out anew
    for kernels of this CPU (AMX, repacked)."""
    global _extra_kernels
    _extra_kernels = extra_kernels
    lib.llama_log_set(_on_log, ctypes.c_void_p())
    lib.llama_backend_init()


def versions() -> tuple[str, str]:
    """llama.cpp's version and the features it was built with."""
    return lib.llama_version().decode(), lib.llama_print_system_info().decode().strip()


_raw: Any = lib._lib  # for what the binding does not wrap, or wraps with a slower return type
_get_logits = _raw["llama_get_logits"]
_get_logits.argtypes, _get_logits.restype = [ctypes.c_void_p], ctypes.c_void_p
_dev_get = _raw["ggml_backend_dev_get"]
_dev_get.argtypes, _dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
_dev_count = _raw["ggml_backend_dev_count"]
_dev_count.argtypes, _dev_count.restype = [], ctypes.c_size_t
_dev_type = _raw["ggml_backend_dev_type"]
_dev_type.argtypes, _dev_type.restype = [ctypes.c_void_p], ctypes.c_int
_dev_memory = _raw["ggml_backend_dev_memory"]
_size_p = ctypes.POINTER(ctypes.c_size_t)
_dev_memory.argtypes, _dev_memory.restype = [ctypes.c_void_p, _size_p, _size_p], None
_DEVICE_GPU = 1  # ggml_backend_dev_type


def openmp() -> Any | None:
    """The OpenMP library under llama.cpp's kernels, where how long its threads spin is ours to
    decide: GNU's, and nobody has set it in the environment."""
    is_gnu = hasattr(_raw, "GOMP_parallel") and not hasattr(_raw, "__kmpc_fork_call")
    return _raw if _has_spins and is_gnu and hasattr(_raw, "omp_pause_resource_all") else None


def gpu_free_bytes() -> int:
    """Free memory over all GPUs this process sees; 0 without any."""
    total = 0
    for index in range(_dev_count()):
        device = _dev_get(index)
        if _dev_type(device) == _DEVICE_GPU:
            free, size = ctypes.c_size_t(), ctypes.c_size_t()
            _dev_memory(device, ctypes.byref(free), ctypes.byref(size))
            total += free.value
    return total


_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}  # llama_split_mode
# llama_load_mode by (mmap, mlock); -1: mapped, but for devices that are better off without.
_LOAD_MODES = {(True, False): -1, (False, False): 0, (False, True): 2, (True, True): 3}
_KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml_type
_no_device = (ctypes.c_void_p * 1)(None)
NO_DEVICES: Any = ctypes.cast(_no_device, ctypes.c_void_p)


def read_text(read: Any, handle: Any, which: int | bytes) -> str:
    """What one of llama.cpp's functions writes into a buffer; they tell how long it must be."""
    size = read(handle, which, None, 0)
    buffer = ctypes.create_string_buffer(max(size, 0) + 1)
    read(handle, which, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


class Model:
    """The weights of one GGUF. Free it after its contexts, and its vocabulary after it."""

    def __init__(
        self,
        path: str,
        vocabulary: Vocabulary,
        *,
        gpu_layers: int,
        split_mode: str = "layer",
        tensor_split: Sequence[float] = (),
        main_gpu: int = 0,
        mmap: bool = True,
        mlock: bool = False,
        repack: bool = True,
        on_progress: Callable[[float], bool] | None = None,
    ) -> None:
        """`gpu_layers` -1 = all, 0 = the GPUs are not touched. `tensor_split` is each GPU's share.
        `repack` as in ipc.EngineParams. `on_progress` gets 0..1 and says whether to go on. Raises
        LlamaError."""
        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.split_mode = _SPLIT_MODES[split_mode]
        params.main_gpu = main_gpu
        params.load_mode = _LOAD_MODES[mmap, mlock]
        shares = (ctypes.c_float * 128)(*tensor_split)  # llama.cpp reads one per possible device
        if tensor_split:
            params.tensor_split = shares
        params.use_extra_bufts = _extra_kernels and repack
        params.kv_overrides = _without_vocabulary(vocabulary)
        if gpu_layers == 0:
            params.devices = NO_DEVICES

        @lib.llama_progress_callback
        def progress(fraction: float, _: object) -> bool:
            return on_progress is None or on_progress(fraction)

        params.progress_callback = progress
        take_lines()
        handle = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not handle:
            raise LlamaError(f"llama.cpp cannot load {path}", take_lines())
        self.handle: Any = handle
        self.vocabulary = vocabulary
        self.context_train = int(lib.llama_model_n_ctx_train(handle))
        self.parameters = int(lib.llama_model_n_params(handle))
        self.size_bytes = int(lib.llama_model_size(handle))  # of all its tensors
        self.can_trim = not (
            lib.llama_model_is_recurrent(handle) or lib.llama_model_is_hybrid(handle)
        )
        self.window = int(lib.llama_model_n_swa(handle))
        self.layers = int(lib.llama_model_n_layer(handle))
        self.heads = int(lib.llama_model_n_head(handle))  # of the first layer's queries
        self.width = int(lib.llama_model_n_embd(handle))

    def metadata(self) -> dict[str, str]:
        """Every scalar key of the GGUF and its value as text."""
        found: dict[str, str] = {}
        for index in range(lib.llama_model_meta_count(self.handle)):
            key = read_text(lib.llama_model_meta_key_by_index, self.handle, index)
            found[key] = read_text(lib.llama_model_meta_val_str_by_index, self.handle, index)
        return found

    def free(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            lib.llama_model_free(handle)


def _without_vocabulary(vocabulary: Vocabulary) -> Any:
    """Keys in place of the file's: of its tokens no more than how many they are."""
    overrides = (lib.llama_model_kv_override * 3)()  # the last one, empty, ends them
    overrides[0].key = b"tokenizer.ggml.model"
    overrides[0].tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
    overrides[0].value.val_str = b"none"
    overrides[1].key = f"{vocabulary.architecture}.vocab_size".encode()
    overrides[1].tag = lib.LLAMA_KV_OVERRIDE_TYPE_INT
    overrides[1].value.val_i64 = vocabulary.size
    return overrides


class Context:
    """One llama_context and the batch it decodes, as arrays.

    Rows 0..n of `tokens`, `positions`, `sequences` and `outputs` are the next batch; `decode(n)`
    runs them. Filling rows is assignment; every row belongs to exactly one sequence.
    """

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        parallel: int,
        batch: int,
        threads: int,
        flash_attention: bool | None,
        unified: bool = False,
        kv_type: str = "f16",
        step_tokens: int = 512,
    ) -> None:
        """`cells` tokens in all: an equal part for each of `parallel` sequences, or where
        `unified` one pool for MAX_SEQUENCES, of which only the first `parallel` may be decoded and
        the next one is not to be used.
        `flash_attention` None = where the device supports it. A `batch` goes through the model
        `step_tokens` at a time. Raises LlamaError."""
        params = lib.llama_context_default_params()
        params.n_ctx = cells
        # One more where there is one pool; see `save`.
        params.n_seq_max = min(parallel + unified, MAX_SEQUENCES)
        params.n_batch = batch
        params.n_ubatch = min(batch, step_tokens)
        # One row of logits per sequence and batch, so no buffers for a row per token.
        params.n_outputs_max = params.n_seq_max
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = unified
        params.type_k = params.type_v = _KV_TYPES[kv_type]
        # A window of its own would drop what a prefix shared later needs; see Context.holds.
        params.swa_full = True
        params.no_perf = True
        params.flash_attn_type = -1 if flash_attention is None else int(flash_attention)
        take_lines()
        handle = lib.llama_init_from_model(model.handle, params)
        if not handle:
            raise LlamaError("llama.cpp cannot create the context", take_lines())
        self.handle: Any = handle
        self._memory: Any = lib.llama_get_memory(handle)
        self.cells = int(lib.llama_n_ctx_seq(handle))
        self.is_unified = unified
        self._window = model.window
        self.batch = int(lib.llama_n_batch(handle))
        self.ubatch = int(lib.llama_n_ubatch(handle))
        self._vocabulary_size = model.vocabulary.size
        self._parallel = parallel

        rows = self.batch
        self.tokens: Int32s = np.zeros(rows, np.int32)
        self.positions: Int32s = np.zeros(rows, np.int32)
        self.sequences: Int32s = np.zeros(rows, np.int32)
        self.outputs: npt.NDArray[np.int8] = np.zeros(rows, np.int8)
        # The C batch wants a pointer per row; they point into `sequences` once and for all.
        self._counts = np.ones(rows, np.int32)
        self._pointers = self.sequences.ctypes.data + 4 * np.arange(rows, dtype=np.uintp)
        self._c_batch = lib.llama_batch(
            n_tokens=0,
            token=self.tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            pos=self.positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        self.began = 0.0
        """When the save or restore in progress began, on the monotonic clock; 0: there is none."""
        self._logits_at = 0
        self._logits: npt.NDArray[np.float32] = np.empty((0, 0), np.float32)

    def decode(self, rows: int) -> int:
        """llama_decode's code: 0 done, 1 no cells free, 2 aborted, below 0 failed."""
        self._c_batch.n_tokens = rows
        return lib.llama_decode(self.handle, self._c_batch)

    def synchronize(self) -> None:
        """Wait until the device has done what `decode` started."""
        lib.llama_synchronize(self.handle)

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """(rows, vocabulary): the rows marked in `outputs`, in order. Waits for the device.
        llama.cpp's own memory, writable, good until the next decode."""
        address = _get_logits(self.handle)
        if address != self._logits_at:
            count = self._parallel * self._vocabulary_size
            flat = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))
            self._logits = flat.reshape(self._parallel, self._vocabulary_size)
            self._logits_at = address
        return self._logits[:rows]

    def trim(self, sequence: int, length: int) -> bool:
        """Keep a sequence's first `length` tokens; False where the memory cannot be cut there."""
        if length == 0:
            return bool(lib.llama_memory_seq_rm(self._memory, sequence, -1, -1))
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target`, whatever it held, hold the first `length` tokens of `source`. Cells of
        one pool are shared; in the partitioned layout the data are copied by the next decode."""
        self.trim(target, 0)
        end = length if self.is_unified else -1
        lib.llama_memory_seq_cp(self._memory, source, target, -1, end)
        if not self.is_unified:
            self.trim(target, length)

    def holds(self, sequence: int, length: int) -> bool:
        """Whether all is there to go on after `length` tokens. With a sliding window llama.cpp
        may have written over cells that only an earlier continuation would look at."""
        if not self._window:
            return True
        first = lib.llama_memory_seq_pos_min(self._memory, sequence)
        return 0 <= first <= max(length + 1 - self._window, 0)

    def save(self, sequence: int) -> npt.NDArray[np.uint8]:
        """All that a sequence holds, to be put back by `restore`. Raises LlamaError.

        llama.cpp writes down only the sequences it may decode, so in one pool those beyond are
        seen by the one after the first `parallel` for the time being.
        """
        if sequence > self._parallel:
            self.copy(sequence, self._parallel, lib.llama_n_ctx_seq(self.handle))
            try:
                return self.save(self._parallel)
            finally:
                self.trim(self._parallel, 0)
        identity: Any = sequence
        size = lib.llama_state_seq_get_size(self.handle, identity)
        data = _in_small_pages(size)
        pointer: Any = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        self.began = time.monotonic()
        written = lib.llama_state_seq_get_data(self.handle, pointer, size, identity)
        self.began = 0.0
        if written == 0 or written > size:
            raise LlamaError(f"sequence {sequence} cannot be saved", take_lines())
        return data[:written]

    def restore(self, sequence: int, data: npt.NDArray[np.uint8]) -> bool:
        """Put saved data into a sequence. False where there is no room, or they are not of this
        model and KV type; the sequence is then empty."""
        identity: Any = sequence
        pointer: Any = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        self.began = time.monotonic()
        is_restored = bool(lib.llama_state_seq_set_data(self.handle, pointer, len(data), identity))
        self.began = 0.0
        if not is_restored:
            self.trim(sequence, 0)
        return is_restored

    def free(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            lib.llama_free(handle)


_OWN_PAGES_BYTES = 2**20


def _in_small_pages(size: int) -> npt.NDArray[np.uint8]:
    """Memory that is written once and rarely read. A worker's large allocations lie in huge pages,
    for the weights' sake (`neuron.worker_process`); to find and clear those can take
    several times as long as to fill small ones, while a request waits."""
    if size < _OWN_PAGES_BYTES:
        return np.empty(size, np.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.uint8)

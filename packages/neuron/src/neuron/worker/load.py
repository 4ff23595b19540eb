"""From a path to a model ready to serve: checks, defaults, load, warm-up, measure.

Raises PreflightFailed with a kind and llama.cpp's own cause, or NoCapacity when memory is short.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from cortex_core.errors import (
    Conflict,
    CortexError,
    InvalidRequest,
    NoCapacity,
    PreflightFailed,
)
from cortex_core.wire.ipc import EngineParams, ModelInfo, ModelKind
from neuron.models.identity import Identity, check_unchanged, identity_of
from neuron.models.kind import kind_of
from neuron.models.layout import (
    SMALL_FILE_BYTES,
    default_flash_attention,
    flash_attention_of,
    is_mapped,
    plan_kv,
    step_tokens_of,
)
from neuron.models.pooling import plan_passes, pools_last
from neuron.worker import llama
from neuron.worker.channels import find_marks
from neuron.worker.detokenize import Pieces
from neuron.worker.gauge import Gauge
from neuron.worker.pooled import PooledContext
from neuron.worker.reasoning import Marks
from neuron.worker.tile import Tile
from neuron.worker.vocabulary import Vocabularies

__all__ = ["LoadedModel", "LoadedPooler", "load", "resident_bytes"]

_DEFAULT_CONTEXT = 8192
_MIN_BATCH = 16
_UNSUPPORTED = re.compile(
    r"unknown model architecture|unsupported|unknown pre-tokenizer|unknown tokenizer"
    r"|invalid ggml type|not supported|version \d+ .*(supported|extract)",
    re.IGNORECASE,
)
_NO_MEMORY = re.compile(
    r"failed to allocate|unable to allocate|out of memory|alloc_tensor_range|bad_alloc",
    re.IGNORECASE,
)


@dataclass
class LoadedModel:
    """`open_context` makes another context like the one that was measured; `held` is to be closed
    after the last of them. `files` are what it was read from. `params` are those of the Load; what
    was made of context, parallel, cells and kv is in `info`. `widest_bridge`: see `Slots.bridges`;
    `tile`: see `KV`."""

    files: Identity
    model: llama.Model
    context: llama.Context
    info: ModelInfo
    params: EngineParams
    pieces: Pieces
    marks: Marks | None
    open_context: Callable[[], llama.Context]
    widest_bridge: int
    tile: Tile | None
    held: ExitStack


@dataclass
class LoadedPooler:
    """A model that embeds or ranks; see LoadedModel."""

    model: llama.Model
    context: PooledContext
    info: ModelInfo
    params: EngineParams
    open_context: Callable[[], PooledContext]
    held: ExitStack


def load(
    path: str,
    params: EngineParams,
    *,
    device: str,
    vocabularies: Vocabularies,
    parked_bytes: Callable[[], int],
    on_progress: Callable[[float], bool],
) -> LoadedModel | LoadedPooler:
    """`on_progress` gets 0..1; False from it abandons the load with Conflict. `parked_bytes`: see
    Gauge."""
    started = time.monotonic()
    files = _check_files(path)
    file_bytes = sum(size for _, _, size, _ in files)
    is_cpu = device.partition(":")[0] == "cpu"
    gauge = Gauge(is_cpu=is_cpu, parked_bytes=parked_bytes)
    is_wanted = True

    def progress(fraction: float) -> bool:
        nonlocal is_wanted
        is_wanted = on_progress(fraction)
        return is_wanted

    held = ExitStack()
    try:
        try:
            vocabulary = vocabularies.open(path)
            held.callback(vocabularies.close, vocabulary)
            model = llama.Model(
                path,
                vocabulary,
                gpu_layers=0 if is_cpu else params.gpu_layers,
                split_mode=params.split_mode,
                tensor_split=params.tensor_split,
                main_gpu=params.main_gpu,
                mmap=is_mapped(params, is_cpu=is_cpu),
                mlock=params.mlock,
                repack=params.repack is not False,
                on_progress=progress,
            )
        except llama.LlamaError as error:
            if not is_wanted:
                raise Conflict(f"the load of {path} was abandoned: unloaded meanwhile") from None
            raise _failure(path, error) from None
        held.callback(model.free)
        check_unchanged(Path(path), files)
        _check_lock(params, llama.take_lines())
        gauge.model_loaded(model.size_bytes)
        text = model.metadata()
        parallel = min(params.parallel, llama.MAX_SEQUENCES)
        is_small = is_cpu and file_bytes < SMALL_FILE_BYTES

        def describe(context_size: int) -> ModelInfo:
            measured = gauge.read()
            return ModelInfo(
                architecture=text.get("general.architecture", ""),
                context=context_size,
                context_train=model.context_train,
                parallel=parallel,
                vocab_size=vocabulary.size,
                parameters=model.parameters,
                file_bytes=file_bytes,
                files=files,
                memory_bytes=measured.memory_bytes,
                weights_bytes=measured.weights_bytes,
                kv_bytes=measured.kv_bytes,
                compute_bytes=measured.compute_bytes,
                load_s=time.monotonic() - started,
                bos=vocabulary.text_of(vocabulary.bos),
                eos=vocabulary.text_of(vocabulary.eos),
                path=path,
                kind=kind_of(text),
                metadata={
                    key: value
                    for key, value in text.items()
                    if key.startswith(("general.", "tokenizer.chat_template"))
                },
            )

        if kind_of(text) != "generate":
            return _load_pooler(model, path, text, params, describe, held)
        context_size = params.context or min(model.context_train, _DEFAULT_CONTEXT)
        plan = plan_kv(
            replace(params, parallel=parallel),
            context=context_size,
            can_trim=model.can_trim,
            is_cpu=is_cpu,
        )
        flash_attention = flash_attention_of(
            params,
            default=default_flash_attention(
                plan, heads=model.heads, is_cpu=is_cpu, is_small=is_small
            ),
        )

        # One pool's rows fill a tile together, except where there is only one to fill it.
        has_tiles = (
            is_cpu
            and flash_attention is not False
            and params.kv_type == "f16"
            and (plan.layout == "partitioned" or parallel == 1)
        )

        def open_context() -> llama.Context:
            return llama.Context(
                model,
                cells=plan.cells,
                parallel=parallel,
                batch=max(params.batch, parallel, _MIN_BATCH),
                threads=params.threads or _default_threads(is_small),
                flash_attention=flash_attention,
                unified=plan.layout == "unified",
                kv_type=params.kv_type,
                step_tokens=step_tokens_of(
                    plan, heads=model.heads, flash_attention=flash_attention, is_cpu=is_cpu
                ),
            )

        try:
            context = open_context()
        except llama.LlamaError as error:
            raise _failure(path, error) from None
        _warm_up(path, context)
        marks = find_marks(lambda text: vocabulary.tokenize_bare(text).tolist(), vocabulary.piece)
        info = replace(
            describe(context_size),
            reasoning=marks.text if marks else None,
            kv=plan.layout,
            kv_type=params.kv_type,
            cells=plan.cells,
        )
    except BaseException:
        held.close()
        raise
    pieces = Pieces(vocabulary.size, vocabulary.piece)
    return LoadedModel(
        files,
        model,
        context,
        info,
        params,
        pieces,
        marks,
        open_context,
        _widest_bridge(is_cpu, is_small),
        _tile(model, text) if has_tiles else None,
        held,
    )


def _load_pooler(
    model: llama.Model,
    path: str,
    metadata: dict[str, str],
    params: EngineParams,
    describe: Callable[[int], ModelInfo],
    held: ExitStack,
) -> LoadedPooler:
    plan = plan_passes(params.context, model.context_train, is_split=pools_last(metadata))
    # A pass is long even where the model is small: on two cores both, with flash attention, were
    # five times as fast as one without.
    flash_attention = flash_attention_of(params, default=None)

    def open_context() -> PooledContext:
        return PooledContext(
            model,
            plan,
            threads=params.threads or _default_threads(is_small=False),
            flash_attention=flash_attention,
            kv_type=params.kv_type,
        )

    try:
        context = open_context()
    except llama.LlamaError as error:
        raise _failure(path, error) from None
    try:
        _check_labels(path, context.width, kind_of(metadata), metadata)
        code, outputs = context.compute([np.zeros(2, np.int32)])
        if code != 0:
            raise _cannot_decode(path, code)
        if not np.isfinite(outputs).all():
            message = f"{path}: the first pass gave numbers that are not finite"
            raise PreflightFailed(message, kind="gguf_corrupt")
    except BaseException:
        context.free()
        raise
    llama.take_lines()  # warnings of the load are no cause of a later failure
    return LoadedPooler(model, context, describe(plan.context), params, open_context, held)


def _check_lock(params: EngineParams, lines: list[str]) -> None:
    """llama.cpp only warns where it may not lock, and goes on with weights that can be paged out.
    Raises InvalidRequest."""
    refused = next((line for line in lines if "mlock" in line), None)
    if params.mlock and refused:
        cause = refused.removeprefix("warning: ")
        raise InvalidRequest(f"mlock: {cause}; raise RLIMIT_MEMLOCK", param="mlock")


def _check_labels(path: str, labels: int, kind: ModelKind, metadata: dict[str, str]) -> None:
    """A reranker has one label, or, as Qwen3's, yes and no, of which llama.cpp makes
    probabilities. Of any others nobody knows which means relevant."""
    is_yes_or_no = metadata.get("general.architecture", "").startswith("qwen3") and labels == 2
    if kind == "rank" and labels != 1 and not is_yes_or_no:
        message = f"{path}: a classifier with {labels} labels is not a reranking model"
        raise PreflightFailed(message, kind="gguf_unsupported")


def _default_threads(is_small: bool) -> int:
    """A small model's operators are shorter than the barrier between them is where the cores are
    busy, and the cores serve its callers; 1 is steadier and leaves room."""
    return 1 if is_small else len(os.sched_getaffinity(0))


def _widest_bridge(is_cpu: bool, is_small: bool) -> int:
    """How many rows cost less than a pass: any number on a GPU, where the weights' way through
    memory is all that counts; about one on a CPU; none where the weights fit its cache."""
    if is_small:
        return 0
    return 1 if is_cpu else llama.MAX_SEQUENCES


def _tile(model: llama.Model, metadata: dict[str, str]) -> Tile | None:
    """None where it is not known to pay: a sliding window bounds what a query attends over."""
    if not model.can_trim or model.window or not model.heads:
        return None
    architecture = metadata.get("general.architecture", "")
    stated = metadata.get(f"{architecture}.attention.key_length", "")
    head_width = int(stated) if stated.isdecimal() else model.width // model.heads
    # The vocabulary's rows are looked up, and multiplied with the last token alone.
    weights = max(model.parameters - model.vocabulary.size * model.width, 0)
    return Tile.of(weights, model.layers * model.heads * max(head_width, 1))


def _check_files(path: str) -> Identity:
    """Of the GGUF, all its parts together. Raises PreflightFailed."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
        files = identity_of(Path(path))
    except FileNotFoundError as error:
        raise PreflightFailed(f"{error.filename}: no such file", kind="gguf_missing") from None
    except IsADirectoryError:
        raise PreflightFailed(f"{path}: is a directory", kind="gguf_missing") from None
    except OSError as error:
        raise PreflightFailed(f"{path}: {error.strerror}", kind="gguf_unreadable") from None
    if magic != b"GGUF":
        message = f"{path}: not a GGUF file (begins with {magic!r})"
        raise PreflightFailed(message, kind="gguf_corrupt")
    return files


def _failure(path: str, error: llama.LlamaError) -> CortexError:
    cause = "; ".join(dict.fromkeys(error.lines)) or error.message
    if _NO_MEMORY.search(cause):
        return NoCapacity(f"{path}: not enough memory: {cause}")
    kind = "gguf_unsupported" if _UNSUPPORTED.search(cause) else "gguf_corrupt"
    return PreflightFailed(f"{path}: {cause}", kind=kind)


def _cannot_decode(path: str, code: int) -> PreflightFailed:
    cause = "; ".join(llama.take_lines())
    message = f"{path}: the first decode failed with {code}: {cause}"
    return PreflightFailed(message, kind="gguf_unsupported")


def _warm_up(path: str, context: llama.Context) -> None:
    """One batch of two tokens: buffers are touched, kernels compiled, before memory is read."""
    context.tokens[:2] = 0
    context.positions[:2] = (0, 1)
    context.sequences[:2] = 0
    context.outputs[:2] = (0, 1)
    code = context.decode(2)
    if code != 0:
        context.free()
        raise _cannot_decode(path, code)
    if not np.isfinite(context.logits(1)).any():
        context.free()
        message = f"{path}: the first decode gave no finite logits"
        raise PreflightFailed(message, kind="gguf_corrupt")
    context.trim(0, 0)
    llama.take_lines()  # warnings of the load are no cause of a later failure


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")

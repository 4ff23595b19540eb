"""How a model's KV cache is laid out, decided before anything is allocated. Pure.

`unified`: one pool of cells for every sequence. `partitioned`: an equal part for each. The parent
asks to know what a load will take, the worker to do it; both get the same answer.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import EngineParams, KvLayout

__all__ = [
    "CELL_BLOCK",
    "MOST_POOLED",
    "SMALL_FILE_BYTES",
    "KvPlan",
    "allocated_cells",
    "default_flash_attention",
    "default_repack",
    "flash_attention_of",
    "is_mapped",
    "layout_of",
    "plan_kv",
    "step_tokens_of",
]

CELL_BLOCK = 256
"""llama.cpp rounds a sequence's cells up to this many."""

MOST_POOLED = 128
"""Sequences decoded at once in one pool; as many of llama.cpp's 256 are left for what has ended."""

SMALL_FILE_BYTES = 64_000_000
"""On a CPU, a smaller model is loaded for exactness and few threads; see worker/load.py."""

_F32 = 4
_STEP_TOKENS = 512
_STEP_TOKENS_WITH_SCORES = (256, 128)
_LEAST_CELLS_WITH_SCORES = 1024
_MOST_SCORES_BYTES = 512 * 1024 * 1024
_LEAST_CONTEXT_OF_PROMPTS = 2048
_Q4_K = (14, 15)  # of llama.cpp's file types: Q4_K_S and Q4_K_M


class KvPlan(msgspec.Struct, frozen=True):
    """`context` tokens per sequence at most, `cells` tokens in the whole cache."""

    layout: KvLayout
    context: int
    parallel: int
    cells: int


def plan_kv(params: EngineParams, *, context: int, can_trim: bool, is_cpu: bool) -> KvPlan:
    """The layout of `params` for a model, and its cells. `context` is resolved: tokens per
    sequence, > 0. `can_trim`: a sequence's tail can be dropped (not so in recurrent and hybrid
    models). Raises InvalidRequest, naming the parameter."""
    layout = layout_of(params, can_trim=can_trim, is_cpu=is_cpu)
    whole = context * params.parallel
    cells = params.cells or whole
    if cells < context:
        raise InvalidRequest(
            f"cells: {cells} cells cannot hold one sequence of {context} tokens (context)",
            param="cells",
        )
    if cells < whole and layout == "partitioned":
        raise InvalidRequest(
            f"cells: {cells} is less than parallel x context = {whole}, which only the unified "
            f"layout allows; this model is loaded with the partitioned one (kv)",
            param="cells",
        )
    return KvPlan(layout, context, params.parallel, cells)


def layout_of(params: EngineParams, *, can_trim: bool, is_cpu: bool) -> KvLayout:
    """What is asked for; else the one that computes less.

    A recurrent state belongs to one sequence, so there is nothing to share. On a CPU every row of
    the unified layout attends over everybody's cells: 16 streams of 512 tokens decoded 74 tokens/s
    against 114; a GPU does not feel it and shares prefixes for nothing.
    """
    if params.kv == "unified" and params.parallel > MOST_POOLED:
        raise InvalidRequest(
            f"parallel: {params.parallel} sequences are more than the {MOST_POOLED} that may share "
            f"one pool (kv unified)",
            param="parallel",
        )
    if params.kv == "unified" and not can_trim:
        raise InvalidRequest(
            "kv: a recurrent model's memory cannot be cut, so its sequences cannot share one pool "
            "(unified); use partitioned or auto",
            param="kv",
        )
    if params.kv != "auto":
        return params.kv
    if not can_trim or params.parallel > MOST_POOLED:
        return "partitioned"
    if params.parallel == 1 or not is_cpu:
        return "unified"
    return "partitioned"


def flash_attention_of(params: EngineParams, *, default: bool | None) -> bool | None:
    """Whether to use flash attention; `default` where nothing is asked for and nothing forces it.
    llama.cpp can read a quantised V cache only with it. Raises InvalidRequest."""
    if params.kv_type == "f16":
        return default if params.flash_attention is None else params.flash_attention
    if params.flash_attention is False:
        raise InvalidRequest(
            f"flash_attention: false, but a KV cache of type {params.kv_type} needs it",
            param="flash_attention",
        )
    return True


def is_mapped(params: EngineParams, *, is_cpu: bool) -> bool:
    """Whether the weights' file is mapped; else it is read. Where nobody has asked, a CPU reads:
    what is read lies in huge pages, what is mapped in small ones. 0.6B, Q4_K_M, two cores: a row
    took 0.94 of the time, sixteen as long; the load of 400 MB in memory 0.36 s instead of 0.29."""
    return not is_cpu if params.mmap is None else params.mmap


def default_repack(
    *, context: int, file_type: object, flags: Container[str], is_cpu: bool, is_small: bool
) -> bool:
    """Whether weights may be laid out anew, where nobody has asked. `context`: tokens per sequence.
    `file_type` is the GGUF's, `flags` the processor's by the names of /proc/cpuinfo. `is_small`:
    see SMALL_FILE_BYTES.

    Of Q4_K as it lies in the file, llama.cpp computes eight rows and more with AVX-512 VNNI in
    tiles, and fewer one by one. 0.6B, two cores: 448 tokens of a prompt took 0.69 of the time, one
    row 1.16, two 1.36, four 1.22, eight 1.07, sixteen 0.94. So whoever has room for long prompts
    has them sooner. AMX works on an arrangement of its own, and has not been measured.
    """
    has_tiles = file_type in _Q4_K and "avx512_vnni" in flags and "amx_int8" not in flags
    is_for_prompts = context >= _LEAST_CONTEXT_OF_PROMPTS
    return not (is_cpu and has_tiles and is_for_prompts) or is_small


def default_flash_attention(
    plan: KvPlan, *, heads: int, is_cpu: bool, is_small: bool
) -> bool | None:
    """Where nobody has asked: None = where the device has it. `is_small`: see SMALL_FILE_BYTES.

    llama.cpp's CPU kernels are faster without where there is much to look at: 0.6B, f16, two
    cores, behind 512 to 6,144 cells a row took 0.6 to 0.8 of the time, four rows 0.4 to 0.9, 20
    tokens of a prompt 0.3 to 0.7 and 256 of them 0.8 to 1.0. Behind 16 cells one row took 1.2
    times as long, sixteen 1.5: a value is written number by number. So short contexts have it; and
    very long ones, where every head's scores would take too much room.
    """
    if not is_cpu:
        return None
    is_short = _seen(plan) < _LEAST_CELLS_WITH_SCORES
    has_room = _has_room_for_scores(plan, heads, min(_STEP_TOKENS_WITH_SCORES))
    return False if is_small or (has_room and not is_short) else None


def step_tokens_of(plan: KvPlan, *, heads: int, flash_attention: bool | None, is_cpu: bool) -> int:
    """Tokens of a prompt that go through the model at once (llama.cpp's micro-batch). A CPU takes
    as long per token for 128 as for 512, and their scores are a quarter."""
    if not is_cpu or flash_attention is not False:
        return _STEP_TOKENS
    sizes = _STEP_TOKENS_WITH_SCORES
    return next((size for size in sizes if _has_room_for_scores(plan, heads, size)), sizes[-1])


def _has_room_for_scores(plan: KvPlan, heads: int, tokens: int) -> bool:
    return _F32 * heads * _seen(plan) * tokens <= _MOST_SCORES_BYTES


def _seen(plan: KvPlan) -> int:
    """Cells that a token may look at."""
    return allocated_cells(plan) // (1 if plan.layout == "unified" else plan.parallel)


def allocated_cells(plan: KvPlan) -> int:
    """Cells that llama.cpp makes of the plan's, after its rounding."""
    total = _rounded(plan.cells)
    if plan.layout == "unified":
        return total
    return _rounded(total // plan.parallel) * plan.parallel


def _rounded(cells: int) -> int:
    return -(-cells // CELL_BLOCK) * CELL_BLOCK

"""How a KV cache is laid out, before anything is allocated."""

from __future__ import annotations

from typing import Any

import pytest

from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import EngineParams
from neuron.models.layout import (
    KvPlan,
    allocated_cells,
    default_flash_attention,
    default_repack,
    flash_attention_of,
    layout_of,
    plan_kv,
    step_tokens_of,
)


def layout(*, can_trim: bool = True, is_cpu: bool = True, **params: Any) -> str:
    return layout_of(EngineParams(**params), can_trim=can_trim, is_cpu=is_cpu)


def plan(context: int = 512, **params: Any) -> KvPlan:
    return plan_kv(EngineParams(**params), context=context, can_trim=True, is_cpu=True)


def test_many_sequences_on_a_cpu_have_parts_of_their_own() -> None:
    assert layout(parallel=4) == "partitioned"


def test_one_sequence_has_the_whole_pool() -> None:
    assert layout(parallel=1) == "unified"


def test_a_gpu_shares_one_pool() -> None:
    assert layout(parallel=4, is_cpu=False) == "unified"


def test_a_memory_that_cannot_be_trimmed_is_never_pooled_unasked() -> None:
    assert layout(parallel=1, is_cpu=False, can_trim=False) == "partitioned"


@pytest.mark.parametrize("kv", ["unified", "partitioned"])
@pytest.mark.parametrize("is_cpu", [True, False])
def test_the_layout_asked_for_is_taken(kv: str, is_cpu: bool) -> None:
    assert layout(kv=kv, parallel=3, is_cpu=is_cpu) == kv


def test_memory_that_cannot_be_cut_cannot_be_pooled() -> None:
    assert layout(kv="partitioned", can_trim=False) == "partitioned"
    with pytest.raises(InvalidRequest) as refused:
        layout(kv="unified", can_trim=False)
    assert refused.value.fault.param == "kv"


def test_the_cache_holds_every_sequence_at_its_longest_unless_told() -> None:
    assert plan(parallel=3).cells == 3 * 512


def test_a_pool_may_be_smaller_than_all_sequences_at_their_longest() -> None:
    assert plan(parallel=3, kv="unified", cells=700).cells == 700


def test_a_partitioned_cache_may_not_be_smaller() -> None:
    with pytest.raises(InvalidRequest, match="1536") as caught:
        plan(parallel=3, kv="partitioned", cells=700)
    assert caught.value.param == "cells"


def test_a_pool_must_hold_one_sequence() -> None:
    with pytest.raises(InvalidRequest, match="300 cells cannot hold") as caught:
        plan(parallel=1, kv="unified", cells=300)
    assert caught.value.param == "cells"


def test_a_quantised_cache_turns_flash_attention_on() -> None:
    assert flash_attention_of(EngineParams(kv_type="q8_0"), default=False) is True


def test_a_quantised_cache_without_flash_attention_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="q4_0") as caught:
        flash_attention_of(EngineParams(kv_type="q4_0", flash_attention=False), default=None)
    assert caught.value.param == "flash_attention"


@pytest.mark.parametrize("default", [None, False])
def test_flash_attention_unasked_is_the_models_default(default: bool | None) -> None:
    assert flash_attention_of(EngineParams(), default=default) is default


def test_flash_attention_is_as_asked() -> None:
    assert flash_attention_of(EngineParams(flash_attention=True), default=False) is True
    assert flash_attention_of(EngineParams(flash_attention=False), default=None) is False


def default(heads: int, plan: KvPlan, *, is_cpu: bool = True, is_small: bool = False) -> Any:
    return default_flash_attention(plan, heads=heads, is_cpu=is_cpu, is_small=is_small)


@pytest.mark.parametrize(
    ("heads", "context", "expected"),
    [
        (16, 768, None),  # short
        (16, 1024, False),
        (16, 65_536, False),
        (16, 65_792, None),  # scores over 512 MiB
        (64, 16_384, False),
        (64, 16_640, None),
    ],
)
def test_a_cpu_does_without_flash_attention_where_that_is_faster_and_has_room(
    heads: int, context: int, expected: bool | None
) -> None:
    assert default(heads, plan(context, parallel=1)) is expected
    assert default(heads, plan(context, parallel=4, kv="partitioned")) is expected


def test_a_pool_is_seen_whole_by_every_token() -> None:
    assert default(64, plan(8192, parallel=4, kv="unified")) is None


def test_a_gpu_has_flash_attention_and_a_small_model_on_a_cpu_never() -> None:
    assert default(16, plan(4096), is_cpu=False) is None
    assert default(16, plan(512), is_small=True) is False


@pytest.mark.parametrize(
    ("context", "flash_attention", "is_cpu", "tokens"),
    [
        (32_768, False, True, 256),
        (33_024, False, True, 128),
        (131_072, False, True, 128),  # an operator's wish
        (32_768, None, True, 512),
        (32_768, False, False, 512),
    ],
)
def test_a_step_is_smaller_where_its_scores_take_room(
    context: int, flash_attention: bool | None, is_cpu: bool, tokens: int
) -> None:
    found = step_tokens_of(
        plan(context, parallel=1), heads=16, flash_attention=flash_attention, is_cpu=is_cpu
    )
    assert found == tokens


@pytest.mark.parametrize(
    ("kv", "parallel", "cells", "allocated"),
    [("unified", 3, 900, 1024), ("partitioned", 3, 900, 3 * 512), ("partitioned", 4, 2048, 2048)],
)
def test_cells_are_rounded_as_llama_cpp_does(
    kv: Any, parallel: int, cells: int, allocated: int
) -> None:
    assert allocated_cells(KvPlan(kv, 300, parallel, cells)) == allocated


def test_more_than_one_pool_serves_have_parts_of_their_own() -> None:
    assert layout(parallel=129, is_cpu=False) == "partitioned"
    with pytest.raises(InvalidRequest) as refused:
        layout(parallel=129, kv="unified")
    assert refused.value.fault.param == "parallel"


def repack(**facts: Any) -> bool:
    """Of a large Q4_K_M with room for prompts, on a CPU that has tiles for it, but for `facts`."""
    usual = {"context": 4096, "file_type": 15, "flags": ("avx512_vnni",), "is_cpu": True}
    return default_repack(**{"is_small": False, **usual, **facts})


def test_q4_k_stays_as_it_is_where_there_is_room_for_prompts() -> None:
    assert not repack()
    assert not repack(file_type=14, context=2048)


@pytest.mark.parametrize(
    "facts",
    [
        {"context": 1792},
        {"file_type": 2},  # Q4_0
        {"file_type": None},
        {"flags": ("avx2",)},
        {"flags": ("avx512_vnni", "amx_int8")},
        {"is_cpu": False},
        {"is_small": True},
    ],
    ids=str,
)
def test_elsewhere_weights_may_be_laid_out_anew(facts: dict[str, Any]) -> None:
    assert repack(**facts)

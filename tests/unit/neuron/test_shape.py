"""What a header says of a model's memory, for kinds of layers that the test models do not have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_core.errors import CortexError
from cortex_core.wire.ipc import EngineParams
from neuron.models.footprint import Room
from neuron.models.gguf import GgufHeader, Scalar, Tensor
from neuron.models.preflight import Preflight
from neuron.models.shape import ModelShape, shape_of

WIDTH = 64


def header(
    tensors: dict[str, tuple[int, ...]],
    keys: dict[str, Scalar] | None = None,
    arrays: dict[str, tuple[Scalar, ...]] | None = None,
) -> GgufHeader:
    tensors = {"token_embd.weight": (WIDTH, 100), "output_norm.weight": (WIDTH,)} | tensors
    given = {"embedding_length": WIDTH, "attention.head_count": 4} | (keys or {})
    return GgufHeader(
        path="x.gguf",
        version=3,
        file_bytes=1,
        architecture="test",
        metadata={f"test.{key}": value for key, value in given.items()},
        array_lengths={},
        tensor_count=len(tensors),
        tensor_bytes=0,
        parameters=0,
        arrays={f"test.{key}": values for key, values in (arrays or {}).items()},
        tensors={name: Tensor(shape, 10) for name, shape in tensors.items()},
    )


def attention(layer: int, key: int = 32, value: int = 32) -> dict[str, tuple[int, ...]]:
    rows = {"attn_q": WIDTH, "attn_k": key, "attn_v": value}
    return {f"blk.{layer}.{name}.weight": (WIDTH, count) for name, count in rows.items()}


def shape(*args: Any) -> ModelShape:
    return shape_of(header(*args))


def test_keys_and_values_are_as_wide_as_their_matrices() -> None:
    (layer,) = shape(attention(0, key=48, value=16)).layers
    assert (layer.key, layer.value, layer.has_cells) == (48, 16, True)
    assert layer.size_bytes == 30


def test_one_matrix_for_all_three_is_taken_apart_by_the_keys() -> None:
    found = shape({"blk.0.attn_qkv.weight": (WIDTH, 96)}, {"attention.head_count_kv": 1})
    (layer,) = found.layers
    assert (layer.query, layer.key, layer.value) == (64, 16, 16)


def test_each_layer_may_have_its_own_number_of_heads() -> None:
    tensors = {f"blk.{n}.attn_qkv.weight": (WIDTH, 96) for n in range(2)}
    found = shape(tensors, {}, {"attention.head_count_kv": (4, 2)})
    assert [layer.key for layer in found.layers] == [64, 32]


def test_latent_attention_keeps_one_compressed_row() -> None:
    rows = {"blk.0.attn_kv_a_mqa.weight": (WIDTH, 40), "blk.0.attn_k_b.weight": (8, 8, 4)}
    (layer,) = shape(rows, {"attention.key_length": 40}).layers
    assert (layer.query, layer.key, layer.value) == (160, 40, 0)


def test_latent_attention_of_an_older_file_keeps_whole_heads() -> None:
    rows = {"blk.0.attn_kv_a_mqa.weight": (WIDTH, 40)}
    keys = {"attention.key_length": 24, "attention.value_length": 16}
    (layer,) = shape(rows, keys).layers
    assert (layer.query, layer.key, layer.value) == (96, 96, 64)


def test_layers_that_share_earlier_keys_keep_none() -> None:
    found = shape(attention(0) | attention(1), {"attention.shared_kv_layers": 1})
    assert [layer.has_cells for layer in found.layers] == [True, False]


def test_an_encoder_keeps_nothing() -> None:
    found = shape(attention(0), {"attention.causal": False})
    assert not found.has_cells
    assert found.layers[0].key == 32


def test_a_linear_layer_between_attention_has_a_state_and_no_cells() -> None:
    """As in Qwen 3.5, whose linear layers have one matrix for query, key and value too."""
    linear = {"blk.0.attn_qkv.weight": (WIDTH, 96), "blk.0.ssm_conv1d.weight": (4, 96)}
    keys = {
        "ssm.inner_size": 32,
        "ssm.state_size": 16,
        "ssm.conv_kernel": 4,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 2,
    }
    found = shape(linear | attention(1), keys)
    first, second = found.layers
    assert not found.can_trim
    assert not first.has_cells
    assert first.recurrence is not None
    assert (first.recurrence.history, first.recurrence.state) == (3 * 96, 16 * 32)
    assert second.has_cells
    assert second.recurrence is None


def test_a_layer_may_have_both() -> None:
    found = shape(attention(0) | {"blk.0.ssm_in.weight": (WIDTH, 80)}, {"ssm.state_size": 4})
    assert found.layers[0].has_cells
    assert found.layers[0].recurrence is not None


def test_a_short_convolution_looks_back_on_its_kernel() -> None:
    keys = {"shortconv.l_cache": 3}
    (layer,) = shape({"blk.0.shortconv.in_proj.weight": (WIDTH, 192)}, keys).layers
    assert layer.recurrence is not None
    assert (layer.recurrence.history, layer.recurrence.state) == (2 * WIDTH, 0)


def test_rwkv_keeps_a_matrix_per_head() -> None:
    keys = {"wkv.head_size": 16, "token_shift_count": 2}
    (layer,) = shape({"blk.0.time_mix_key.weight": (WIDTH, WIDTH)}, keys).layers
    assert layer.recurrence is not None
    assert (layer.recurrence.history, layer.recurrence.state) == (2 * WIDTH, 16 * WIDTH)


def test_key_delta_attention_keeps_a_matrix_per_head() -> None:
    keys = {"kda.head_dim": 8, "ssm.conv_kernel": 4}
    (layer,) = shape({"blk.0.ssm_conv1d_q.weight": (4, 32)}, keys).layers
    assert layer.recurrence is not None
    assert (layer.recurrence.history, layer.recurrence.state) == (3 * 3 * 32, 8 * 8 * 4)


def test_gate_and_up_in_one_matrix_are_told_by_what_goes_down() -> None:
    rows = {"blk.0.ffn_up.weight": (WIDTH, 200), "blk.0.ffn_down.weight": (100, WIDTH)}
    (layer,) = shape(rows).layers
    assert (layer.feed_forward, layer.is_gated, layer.is_gate_fused) == (100, True, True)


def test_experts_and_a_shared_one() -> None:
    rows = {
        "blk.0.ffn_up_exps.weight": (WIDTH, 24, 8),
        "blk.0.ffn_down_exps.weight": (24, WIDTH, 8),
        "blk.0.ffn_up_shexp.weight": (WIDTH, 48),
        "blk.0.ffn_gate_shexp.weight": (WIDTH, 48),
    }
    (layer,) = shape(rows).layers
    assert (layer.experts, layer.expert_feed_forward, layer.feed_forward) == (8, 24, 48)


NAMES = [
    *("attn_k", "attn_q", "attn_v", "attn_qkv", "attn_kv_a_mqa", "attn_k_b", "ffn_up", "ffn_gate"),
    *("ffn_down", "ffn_up_exps", "ffn_down_exps", "ssm_in", "shortconv.x", "time_mix_x"),
]
KEYS = [
    *("embedding_length", "attention.head_count", "attention.key_length", "context_length"),
    *("ssm.inner_size", "ssm.state_size", "ssm.conv_kernel", "wkv.head_size", "kda.head_dim"),
    *("attention.shared_kv_layers", "attention.sliding_window", "expert_used_count"),
]


@settings(max_examples=150)
@given(
    tensors=st.dictionaries(
        st.builds("blk.{}.{}.weight".format, st.integers(0, 3), st.sampled_from(NAMES)),
        st.lists(st.integers(0, 300), max_size=3).map(tuple),
        max_size=12,
    ),
    keys=st.dictionaries(
        st.sampled_from(KEYS),
        st.one_of(st.integers(-5, 300), st.text(max_size=3), st.booleans(), st.floats()),
    ),
)
@pytest.mark.parametrize("gpus", [[], [Room("cuda:0", 10**9)]], ids=["cpu", "gpu"])
def test_a_header_that_makes_no_sense_breaks_nothing(
    gpus: list[Room], tensors: dict[str, tuple[int, ...]], keys: dict[str, Scalar]
) -> None:
    odd = header(tensors, keys)
    try:
        found = Preflight(odd, EngineParams(), Room("host", 10**9), gpus)
        assert found.estimate("x", "cpu").total_bytes >= 0
        found.check_room("x")
    except CortexError:
        pass

"""The sizes of a model that decide what memory it takes, read off its GGUF header. Pure.

What the tensors say is believed before what the keys say: a row's length is a fact, and the keys'
names differ between architectures. What neither says is 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from neuron.models.gguf import GgufHeader

__all__ = ["Layer", "ModelShape", "Recurrence", "shape_of"]

_MOST_LAYERS = 4096  # far above any real model; a hostile header must not cost time
_LAYER = re.compile(r"blk\.(\d+)\.(.+)$")


class Recurrence(msgspec.Struct, frozen=True):
    """The state that one sequence has in one layer, and the widths of what computes it.
    `state` and `history` are numbers (of 4 bytes): the state itself, and what the convolution over
    the last tokens looks back on."""

    history: int
    state: int
    inner: int
    mixed: int
    projected: int
    kernel: int
    heads: int


class Layer(msgspec.Struct, frozen=True):
    """Widths in elements. `key` and `value` are what one token leaves in the KV cache; 0 without
    attention. `size_bytes`: its weights. Fused: query, key and value, or gate and up, come out of
    one matrix."""

    size_bytes: int
    query: int = 0
    key: int = 0
    value: int = 0
    has_cells: bool = False
    is_qkv_fused: bool = False
    feed_forward: int = 0
    is_gated: bool = False
    is_gate_fused: bool = False
    experts: int = 0
    expert_feed_forward: int = 0
    recurrence: Recurrence | None = None


class ModelShape(msgspec.Struct, frozen=True):
    """`width` of a token's vector, `heads` of a query, `head_width` of one head's key.
    `window` > 0: some layers see only so many tokens. `input_bytes` and `output_bytes`: the
    weights before and after the layers; `is_tied` where they share their matrix."""

    width: int
    heads: int
    head_width: int
    value_head_width: int
    vocabulary: int
    context: int
    window: int
    experts_used: int
    is_tied: bool
    is_causal: bool
    input_bytes: int
    output_bytes: int
    layers: tuple[Layer, ...]

    @property
    def can_trim(self) -> bool:
        """Whether a sequence's tail can be dropped from the memory."""
        return not any(layer.recurrence for layer in self.layers)

    @property
    def has_cells(self) -> bool:
        return any(layer.has_cells for layer in self.layers)


def shape_of(header: GgufHeader) -> ModelShape:
    """Never raises: a header that makes no sense gives a shape that makes none."""
    return _Reader(header).shape()


class _Reader:
    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self._tensors: dict[int, dict[str, tuple[int, ...]]] = {}
        self._bytes: dict[int, int] = {}
        self._outside: dict[str, int] = {}
        for name, tensor in header.tensors.items():
            if found := _LAYER.match(name):
                layer = int(found[1])
                self._tensors.setdefault(layer, {})[found[2]] = tensor.shape
                self._bytes[layer] = self._bytes.get(layer, 0) + tensor.size_bytes
            else:
                self._outside[name] = tensor.size_bytes

    def shape(self) -> ModelShape:
        embedding = self._header.tensors.get("token_embd.weight")
        input_shape = embedding.shape if embedding else ()
        at_input = sum(size for name, size in self._outside.items() if name.startswith("token"))
        tokens = self._header.array_lengths.get("tokenizer.ggml.tokens", 0)
        self._width = self._number("embedding_length") or _at(input_shape, 0)
        self._heads = max(self._numbers("attention.head_count"), default=0)
        per_head = self._width // self._heads if self._heads else 0
        self._key_width = self._number("attention.key_length") or per_head
        self._value_width = self._number("attention.value_length") or per_head
        return ModelShape(
            width=self._width,
            heads=self._heads,
            head_width=self._key_width,
            value_head_width=self._value_width,
            vocabulary=_at(input_shape, 1) or tokens,
            context=self._number("context_length"),
            window=self._number("attention.sliding_window"),
            experts_used=self._number("expert_used_count"),
            is_tied=embedding is not None and "output.weight" not in self._outside,
            is_causal=self._value("attention.causal") is not False,
            input_bytes=at_input,
            output_bytes=sum(self._outside.values()) - at_input,
            layers=tuple(self._layers()),
        )

    def _layers(self) -> Iterator[Layer]:
        last = max(self._tensors, default=-1) + 1
        count = min(max(self._number("block_count"), last), _MOST_LAYERS)
        # Layers at the end may look at the keys of earlier ones instead of keeping their own.
        owners = count - self._number("attention.shared_kv_layers")
        for index in range(count):
            yield self._layer(index, has_cells=index < owners)

    def _layer(self, index: int, *, has_cells: bool) -> Layer:
        tensors = self._tensors.get(index, {})
        rows = {name: _at(shape, 1) for name, shape in tensors.items()}
        recurrence = self._recurrence(tensors)
        query, key, value = self._attention(index, rows, is_recurrent=recurrence is not None)
        up = rows.get("ffn_up.weight", 0)
        is_gated = "ffn_gate.weight" in rows
        is_gate_fused = not is_gated and up == 2 * _at(tensors.get("ffn_down.weight", ()), 0) > 0
        if is_gate_fused:
            up //= 2
        shared = rows.get("ffn_up_shexp.weight", 0)
        experts = tensors.get("ffn_up_exps.weight") or tensors.get("ffn_gate_up_exps.weight", ())
        expert_inner = _at(tensors.get("ffn_down_exps.weight", ()), 0)
        return Layer(
            size_bytes=self._bytes.get(index, 0),
            query=query,
            key=key,
            value=value,
            has_cells=has_cells and key > 0 and self._caches,
            is_qkv_fused=key > 0 and "attn_qkv.weight" in rows,
            feed_forward=up or shared,
            is_gated=is_gated or is_gate_fused or "ffn_gate_shexp.weight" in rows,
            is_gate_fused=is_gate_fused,
            experts=_at(experts, 2),
            expert_feed_forward=expert_inner,
            recurrence=recurrence,
        )

    @property
    def _caches(self) -> bool:
        """An encoder sees all of its text at once and keeps nothing."""
        return self._value("attention.causal") is not False

    def _attention(
        self, index: int, rows: dict[str, int], *, is_recurrent: bool
    ) -> tuple[int, int, int]:
        """(query, key, value) widths of a layer; zeros where it does not attend."""
        if latent := rows.get("attn_kv_a_mqa.weight"):
            # Keys and values are one compressed row; the values are part of it.
            is_absorbed = "attn_k_b.weight" in rows
            key_heads = self._per_layer("attention.head_count_kv", index) or self._heads
            width = self._key_width if not is_absorbed else latent
            if is_absorbed:
                return self._heads * latent, latent, 0
            return self._heads * width, key_heads * width, key_heads * self._value_width
        if key := rows.get("attn_k.weight"):
            heads = self._heads * self._key_width
            return heads or rows.get("attn_q.weight", 0), key, rows.get("attn_v.weight", key)
        if "attn_qkv.weight" in rows and not is_recurrent:
            key_heads = self._per_layer("attention.head_count_kv", index) or self._heads
            query = self._heads * self._key_width
            return query, key_heads * self._key_width, key_heads * self._value_width
        return 0, 0, 0

    def _recurrence(self, tensors: dict[str, tuple[int, ...]]) -> Recurrence | None:
        number = self._number
        if (head := number("wkv.head_size")) and any(n.startswith("time_mix") for n in tensors):
            shifts = number("token_shift_count") or 2
            return Recurrence(
                history=shifts * self._width,
                state=self._width * head,
                inner=self._width,
                mixed=self._width,
                projected=4 * self._width,
                kernel=shifts,
                heads=self._width // head,
            )
        if any(name.startswith("shortconv") for name in tensors):
            kernel = number("shortconv.l_cache")
            return Recurrence(
                history=self._width * max(kernel - 1, 0),
                state=0,
                inner=self._width,
                mixed=self._width,
                projected=3 * self._width,
                kernel=kernel,
                heads=1,
            )
        if not any(name.startswith("ssm_") for name in tensors):
            return None
        inner, state, kernel = number("ssm.inner_size"), number("ssm.state_size"), number(_KERNEL)
        mixed = inner + 2 * number("ssm.group_count") * state
        if key_head := number("kda.head_dim"):
            wide = self._heads * key_head
            history, numbers, inner, mixed = 3 * max(kernel - 1, 3) * wide, wide * key_head, wide, 3
            mixed *= wide
        else:
            history, numbers = max(kernel - 1, 0) * mixed, state * inner
        into = tensors.get("ssm_in.weight") or tensors.get("attn_qkv.weight", ())
        return Recurrence(
            history=history,
            state=numbers,
            inner=inner,
            mixed=mixed,
            projected=_at(into, 1) or mixed + inner,
            kernel=kernel,
            heads=number("ssm.time_step_rank"),
        )

    # keys

    def _value(self, key: str) -> object:
        return self._header.metadata.get(f"{self._header.architecture}.{key}")

    def _number(self, key: str) -> int:
        value = self._value(key)
        return max(value, 0) if isinstance(value, int) and not isinstance(value, bool) else 0

    def _numbers(self, key: str) -> list[int]:
        """A scalar, or one number per layer."""
        values = self._header.arrays.get(f"{self._header.architecture}.{key}")
        if values is None:
            return [self._number(key)]
        return [max(value, 0) if isinstance(value, int) else 0 for value in values]

    def _per_layer(self, key: str, index: int) -> int:
        values = self._numbers(key)
        return values[index] if index < len(values) else values[0] if len(values) == 1 else 0


_KERNEL = "ssm.conv_kernel"


def _at(shape: tuple[int, ...], index: int) -> int:
    return shape[index] if index < len(shape) else 0

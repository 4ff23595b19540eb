"""What llama.cpp's compute buffer comes to for a model's largest step. Pure.

llama.cpp reserves it when the context is made, for a prompt's batch over a full cache. Here the
graph of that step is written down for the kinds of layers there are, result by result, and laid
out as ggml does (`arena`). Checked against what llama.cpp reserves in tests/unit/worker.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from neuron.models.arena import Tape
from neuron.models.shape import Layer, ModelShape, Recurrence

__all__ = ["GraphSize", "compute_bytes"]

_F32, _I32, _I64 = 4, 4, 8
_STEADY = 3  # of equal layers, more change nothing


class GraphSize(msgspec.Struct, frozen=True):
    """`tokens` in the step, as many from each of `sequences`; a token may look at `cells`.
    `outputs` rows of logits are wanted."""

    tokens: int
    cells: int
    sequences: int
    outputs: int
    flash_attention: bool


def compute_bytes(shape: ModelShape, size: GraphSize) -> int:
    """Bytes of the buffer, with the graph's inputs in it."""
    return _Graph(shape, size).run()


class _Graph:
    def __init__(self, shape: ModelShape, size: GraphSize) -> None:
        self._shape = shape
        self._size = size
        # A step takes as many tokens of each part.
        self._tokens = -(-size.tokens // size.sequences) * size.sequences
        self._tape = Tape()
        tape, tokens = self._tape, self._tokens
        self._ids = tape.input(_I32 * tokens)
        tape.input(_F32 * shape.width * tokens)  # for vectors in the place of tokens
        self._positions = tape.input(_I32 * tokens)
        self._wanted = tape.input(_I32 * size.outputs)
        self._mask, self._key_cells, self._value_cells = self._attention_inputs()
        for _ in range(1 if shape.window else 0):  # one more set for the layers with a window
            self._attention_inputs()
        self._copies = tape.input(_I32 * size.sequences)

    def _attention_inputs(self) -> tuple[int, int, int]:
        shape, size, tape = self._shape, self._size, self._tape
        attends = any(layer.key for layer in shape.layers)
        if not attends:
            return -1, -1, -1
        if not shape.has_cells:
            per_cell = 2 if size.flash_attention else _F32
            return tape.input(per_cell * self._tokens * self._tokens), -1, -1
        keys = tape.input(_I64 * self._tokens)
        # Without flash attention values are kept transposed, and every number has its own index.
        widest = max(layer.value for layer in shape.layers)
        spread = 1 if size.flash_attention else max(widest, 1)
        values = tape.input(_I64 * self._tokens * spread)
        per_cell = 2 if size.flash_attention else _F32
        return tape.input(per_cell * size.cells * self._tokens), keys, values

    def run(self) -> int:
        shape, tape = self._shape, self._tape
        x = self._row(shape.width, self._ids)
        layers = self._distinct()
        for index, layer in enumerate(layers):
            x = self._layer(layer, x, is_last=index == len(layers) - 1)
        final = tape.add(_F32 * shape.width * self._size.outputs, x, in_place=True)
        if shape.is_causal:  # an encoder's vectors are not turned into words
            tape.add(_F32 * shape.vocabulary * self._size.outputs, final)
        return tape.peak_bytes()

    def _distinct(self) -> list[Layer]:
        """The layers, without those that only repeat the ones before them."""
        kept: list[Layer] = []
        met: Counter[Layer] = Counter()
        for whole in self._shape.layers:
            layer = msgspec.structs.replace(whole, size_bytes=0)
            met[layer] += 1
            if met[layer] <= _STEADY:
                kept.append(layer)
        return kept

    def _row(self, width: int, *reads: int, in_place: bool = False) -> int:
        """A result with `width` numbers per token."""
        return self._tape.add(_F32 * width * self._tokens, *reads, in_place=in_place)

    def _layer(self, layer: Layer, x: int, *, is_last: bool) -> int:
        width = self._shape.width
        normed = self._row(width, x, in_place=True)
        mixed: list[int] = []
        if layer.recurrence is not None:
            mixed.append(self._recurrence(layer.recurrence, normed))
        if layer.key:
            mixed.append(self._attention(layer, normed))
        out = mixed[0] if mixed else normed
        if len(mixed) > 1:
            out = self._row(width, *mixed, in_place=True)
        rows = self._tokens
        if is_last:
            rows = self._size.outputs
            out = self._tape.add(_F32 * width * rows, out, self._wanted)
            x = self._tape.add(_F32 * width * rows, x, self._wanted)
        x = self._tape.add(_F32 * width * rows, out, x, in_place=True)
        return self._feed_forward(layer, x, rows)

    def _attention(self, layer: Layer, normed: int) -> int:
        shape, size, tape = self._shape, self._size, self._tape
        # Queries and keys are seen head by head before they are normed or rotated, and what is
        # behind such a view is never taken over: they exist twice for a moment.
        fused = None
        if layer.is_qkv_fused:
            fused = self._row(layer.query + layer.key + layer.value, normed)
        query = self._row(layer.query, self._row(layer.query, normed) if fused is None else fused)
        reads = [query, self._mask]
        if shape.has_cells and layer.has_cells:
            value = self._row(layer.value, normed) if fused is None else fused
            key = self._row(layer.key, self._row(layer.key, normed) if fused is None else fused)
            tape.add(0, key, self._key_cells)
            if fused is not None and not size.flash_attention:
                value = self._row(layer.value, fused)  # to be transposed it must be in one piece
            tape.add(0, value, self._value_cells)
        elif not shape.has_cells:
            reads += [self._row(layer.value, normed), self._row(layer.key, normed)]
        seen = size.cells if shape.has_cells else self._tokens
        heads = shape.heads
        out = heads * shape.value_head_width or layer.query
        if size.flash_attention:
            attended = self._row(out, *reads)
        else:
            scores = self._row(seen * heads, *reads)
            attended = self._row(out, self._row(out, scores))
        return self._row(shape.width, attended)

    def _feed_forward(self, layer: Layer, x: int, rows: int) -> int:
        if not (layer.feed_forward or layer.experts):
            return x
        normed = self._of(rows, self._shape.width, x)
        if layer.experts:
            out = self._experts(layer, normed, rows)
            if layer.feed_forward:
                shared = self._dense(layer, normed, rows)
                out = self._of(rows, self._shape.width, out, shared, in_place=True)
        else:
            out = self._dense(layer, normed, rows)
        return self._of(rows, self._shape.width, out, x, in_place=True)

    def _dense(self, layer: Layer, normed: int, rows: int) -> int:
        wide = layer.feed_forward
        if layer.is_gate_fused:
            inner = self._of(rows, wide, self._of(rows, 2 * wide, normed))
        elif layer.is_gated:
            gate = self._of(rows, wide, normed)
            up = self._of(rows, wide, normed)
            inner = self._of(rows, wide, gate, up)
        else:
            inner = self._of(rows, wide, normed)
        return self._of(rows, self._shape.width, inner)

    def _experts(self, layer: Layer, normed: int, rows: int) -> int:
        used, width = max(self._shape.experts_used, 1), self._shape.width
        scores = self._of(rows, layer.experts, normed)
        order = self._of(rows, layer.experts, scores)
        weights = self._of(rows, used, scores, order)
        weights = self._of(rows, used, weights, self._of(rows, 1, weights), in_place=True)
        up = self._of(rows, used * layer.expert_feed_forward, normed, order)
        gate = self._of(rows, used * layer.expert_feed_forward, normed, order)
        inner = self._of(rows, used * layer.expert_feed_forward, gate, up)
        down = self._of(rows, used * width, inner, order)
        down = self._of(rows, used * width, down, weights, in_place=True)
        return self._of(rows, width, down)

    def _recurrence(self, mixer: Recurrence, normed: int) -> int:
        sequences = self._size.sequences
        history = self._tape.add(_F32 * mixer.history * sequences, self._copies)
        projected = self._row(mixer.projected, normed)
        looked_back = max(mixer.kernel - 1, 0) * sequences
        window = self._tape.add(
            _F32 * mixer.mixed * (self._tokens + looked_back), history, projected
        )
        self._tape.add(0, window)
        convolved = self._row(mixer.mixed, window)
        if not mixer.state:
            return self._row(self._shape.width, convolved, projected)
        steps = self._row(mixer.heads, projected)
        state = _F32 * mixer.state * sequences
        scanned = self._tape.add(
            _F32 * mixer.inner * self._tokens + state, convolved, steps, self._copies
        )
        self._tape.add(0, scanned)
        gate = self._row(mixer.inner, projected)
        skip = self._row(mixer.inner, convolved)
        summed = self._row(mixer.inner, scanned, skip, in_place=True)
        return self._row(self._shape.width, self._row(mixer.inner, gate, summed))

    def _of(self, rows: int, width: int, *reads: int, in_place: bool = False) -> int:
        return self._tape.add(_F32 * width * rows, *reads, in_place=in_place)

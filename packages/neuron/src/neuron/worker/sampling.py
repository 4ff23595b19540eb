"""One request's choice of the next token from a row of logits.

Penalties are a few writes into the row; the draw is llama.cpp's chain. Plain greedy needs nothing
of this: the engine takes the arg max of all such rows at once.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from cortex_core.wire.ipc import Sampling
from neuron.worker.llama import Chain, Context

__all__ = ["Sampler", "penalize", "sampler_for"]

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp reads this value as "choose one yourself"


def sampler_for(sampling: Sampling) -> Sampler | None:
    """The sampler a request needs; None for plain greedy."""
    is_greedy = sampling.temperature <= 0 or sampling.top_k == 1
    if is_greedy and not _has_penalties(sampling):
        return None
    return Sampler(sampling, is_greedy=is_greedy)


def _has_penalties(sampling: Sampling) -> bool:
    repeats = sampling.repeat_penalty != 1.0 and sampling.repeat_last_n != 0
    return repeats or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def penalize(row: Floats, history: Int32s, prompt_size: int, sampling: Sampling) -> None:
    """Change the row in place. The repeat penalty looks at the last `repeat_last_n` tokens of
    prompt and answer (-1: at all), as llama.cpp does; presence and frequency at the whole answer
    and at nothing else, as OpenAI defines them."""
    if sampling.repeat_penalty != 1.0 and sampling.repeat_last_n != 0:
        size = len(history) if sampling.repeat_last_n < 0 else sampling.repeat_last_n
        ids = np.unique(history[max(len(history) - size, 0) :])
        values = row[ids]
        factor = np.float32(sampling.repeat_penalty)
        row[ids] = np.where(values > 0, values / factor, values * factor)
    if sampling.presence_penalty or sampling.frequency_penalty:
        ids, counts = np.unique(history[prompt_size:], return_counts=True)
        costs = sampling.presence_penalty + sampling.frequency_penalty * counts
        row[ids] -= costs.astype(np.float32)


class Sampler:
    """Seeded: the same rows give the same tokens. Free it."""

    def __init__(self, sampling: Sampling, *, is_greedy: bool) -> None:
        self._sampling = sampling
        self._penalizes = _has_penalties(sampling)
        self._chain: Chain | None = None
        if not is_greedy:
            self._chain = Chain(
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                temperature=sampling.temperature,
                seed=_seed32(sampling.seed),
            )

    def choose(
        self, logits: Floats, row: int, history: Int32s, prompt_size: int, context: Context
    ) -> int:
        """The token after `history` (prompt and answer), from row `row` of all `logits`."""
        values = logits[row]
        if self._penalizes:
            penalize(values, history, prompt_size, self._sampling)
        if self._chain is None:
            return int(values.argmax())
        return self._chain.sample(context, row - len(logits))

    def free(self) -> None:
        if self._chain is not None:
            self._chain.free()


def _seed32(seed: int | None) -> int:
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else 0

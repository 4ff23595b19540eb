"""One request's choice of the next token from a row of logits.

Biases, bans and penalties are a few writes into the row; the draw is llama.cpp's chain. Plain
greedy needs nothing of this: the engine takes the arg max of all such rows at once.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import Sampling
from neuron.worker.chain import Chain
from neuron.worker.grammar import Guide
from neuron.worker.llama import Context, Model
from neuron.worker.logprobs import Scored, scored

__all__ = ["Sampler", "is_plain", "penalize", "sampler_for"]

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp reads this value as "choose one yourself"


def is_plain(sampling: Sampling) -> bool:
    """Whether the token is the arg max of the row as it is."""
    changes = sampling.logit_bias or sampling.min_tokens or sampling.dry_multiplier
    return _is_greedy(sampling) and not changes and not _has_penalties(sampling)


def sampler_for(
    sampling: Sampling,
    model: Model,
    *,
    context: int,
    guide: Guide | None = None,
    top_logprobs: int | None = None,
) -> Sampler | None:
    """The sampler a request needs; None for plain greedy. `context`: how many tokens a sequence
    holds at most. It frees the `guide`. Raises InvalidRequest for a bias of what is no token."""
    if is_plain(sampling) and guide is None and top_logprobs is None:
        return None
    vocabulary = model.vocabulary
    biases = _biases(sampling.logit_bias, vocabulary.size)
    is_greedy = _is_greedy(sampling)
    chain = None
    if not is_greedy or sampling.dry_multiplier > 0:
        seed = _seed32(sampling.seed)
        chain = Chain(sampling, model, seed=seed, is_greedy=is_greedy, reach=context)
    return Sampler(
        sampling,
        chain,
        end_ids=vocabulary.end_ids,
        biases=biases,
        guide=guide,
        top_logprobs=top_logprobs,
    )


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature <= 0 or (sampling.top_k == 1 and not sampling.mirostat)


def _has_penalties(sampling: Sampling) -> bool:
    repeats = sampling.repeat_penalty != 1.0 and sampling.repeat_last_n != 0
    return repeats or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _wanted(sampling: Sampling) -> int:
    """How many of the likeliest possible tokens the choice is among; 0: all."""
    if sampling.dry_multiplier > 0:
        return 0
    if _is_greedy(sampling):
        return 1
    return 0 if sampling.mirostat or sampling.top_n_sigma > 0 else sampling.top_k


def _biases(biases: dict[int, float], vocabulary_size: int) -> tuple[Int32s, Floats] | None:
    if not biases:
        return None
    wrong = next((token for token in biases if not 0 <= token < vocabulary_size), None)
    if wrong is not None:
        raise InvalidRequest(
            f"logit_bias: {wrong} is no token of this model, which has {vocabulary_size}",
            param="logit_bias",
        )
    return np.array(list(biases), np.int32), np.array(list(biases.values()), np.float32)


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
    """Seeded: the same rows give the same tokens. `scored` is of the last one chosen, if it is to
    be. Free it."""

    def __init__(
        self,
        sampling: Sampling,
        chain: Chain | None,
        *,
        end_ids: frozenset[int] = frozenset(),
        biases: tuple[Int32s, Floats] | None = None,
        guide: Guide | None = None,
        top_logprobs: int | None = None,
    ) -> None:
        self.scored: Scored | None = None
        self._top_logprobs = top_logprobs
        self._sampling = sampling
        self._guide = guide
        self._wanted = _wanted(sampling)
        self._chain = chain
        self._ends = np.array(sorted(end_ids), np.int32)
        self._biases = biases
        self._penalizes = _has_penalties(sampling)
        self._is_first = True

    @property
    def is_complete(self) -> bool:
        """Nothing more may come."""
        return self._guide is not None and self._guide.is_complete

    def choose(
        self,
        logits: Floats,
        row: int,
        history: Int32s,
        prompt_size: int,
        context: Context,
        forced: int | None = None,
    ) -> int:
        """The token after `history` (prompt and answer), from row `row` of all `logits`, which
        is changed; or the `forced` one, of which it then only takes note. Raises InvalidRequest
        where a constraint cannot be held to."""
        if self._is_first:
            self._is_first = False
            if self._chain is not None:
                self._chain.remember(history)
        if forced is not None:
            if self._chain is not None:
                self._chain.accept(forced)
            if self._guide is not None:
                self._guide.accept(forced)
            return forced
        values = logits[row]
        untouched = None if self._top_logprobs is None else values.copy()
        token = self._end_or_none(values, history, prompt_size)
        if token is None:
            token = self._draw(logits, row, context)
        if self._guide is not None:
            self._guide.accept(token)
        if untouched is not None and self._top_logprobs is not None:
            self.scored = scored(untouched, token, self._top_logprobs)
        return token

    def _end_or_none(self, values: Floats, history: Int32s, prompt_size: int) -> int | None:
        """Change the row as the request says. An end-of-generation token if nothing else may come,
        which neither `ignore_eos` nor `min_tokens` can change."""
        if self._biases is not None:
            tokens, biases = self._biases
            values[tokens] += biases
        if self._penalizes:
            penalize(values, history, prompt_size, self._sampling)
        if self._guide is not None:
            self._guide.restrict(values, self._wanted)
        is_early = len(history) - prompt_size < self._sampling.min_tokens
        if not (self._sampling.ignore_eos or is_early):
            return None
        ends = values[self._ends]
        values[self._ends] = -np.inf
        if self._guide is None or values.max() > -np.inf or ends.max(initial=-np.inf) == -np.inf:
            return None
        return int(self._ends[ends.argmax()])

    def _draw(self, logits: Floats, row: int, context: Context) -> int:
        values = logits[row]
        if self._guide is not None and values.max() == -np.inf:
            raise InvalidRequest("no token of this model can continue the answer as it must")
        if self._chain is None:
            return int(values.argmax())
        if self._chain.needs_finite:
            return self._chain.sample_possible(values)
        return self._chain.sample(context, row - len(logits))

    def free(self) -> None:
        if self._chain is not None:
            self._chain.free()
        if self._guide is not None:
            self._guide.free()


def _seed32(seed: int | None) -> int:
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else 0

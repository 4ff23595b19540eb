"""llama.cpp's samplers, one behind the other, for one request."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from cortex_core.wire.ipc import Sampling
from neuron.worker import llama

__all__ = ["CANDIDATE", "Chain", "apply"]

lib = llama.lib  # pyright: ignore[reportPrivateImportUsage]

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_FARTHEST = 80.0
"""Below the best logit: a probability of e^-80 is no more than 0, but as a float still above it."""

_MIROSTAT_TOKENS = 100  # mirostat 1 estimates its exponent from so many; llama.cpp's own number


class Chain:
    """Ends in a draw with a seed, or where the temperature leaves no choice in the arg max. Free
    it. Its stages are those of llama.cpp's own tools, in their order; one that would change
    nothing is left out."""

    def __init__(
        self, sampling: Sampling, model: llama.Model, *, seed: int, is_greedy: bool, reach: int
    ) -> None:
        """`reach`: how many tokens DRY looks back at most. With DRY it reads the whole vocabulary,
        which for a large one takes tens of milliseconds."""
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._handle: Any = lib.llama_sampler_chain_init(params)
        last_n = sampling.dry_penalty_last_n
        self._reach = reach if last_n < 0 else min(last_n, reach)
        self._looks_back = sampling.dry_multiplier > 0 and self._reach > 0
        # These take logarithms of probabilities, and sort by what comes of it: with a probability
        # of 0 that is NaN, and sorting NaNs may write anywhere.
        self.needs_finite = not is_greedy and (sampling.typical_p < 1.0 or sampling.mirostat == 1)
        if self._looks_back:
            self._add(self._dry(sampling, model))
        if is_greedy:
            self._add(lib.llama_sampler_init_greedy())
        elif sampling.mirostat:
            self._add_temperature(sampling)
            self._add(_mirostat(sampling, model.vocabulary.size, seed))
        else:
            self._add_truncation(sampling, seed)
            self._add_temperature(sampling)
            self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, stage: Any) -> None:
        lib.llama_sampler_chain_add(self._handle, stage)

    def _dry(self, sampling: Sampling, model: llama.Model) -> Any:
        breakers = [text.encode() for text in sampling.dry_sequence_breakers]
        return lib.llama_sampler_init_dry(
            model.vocabulary.handle,
            sampling.dry_multiplier,
            sampling.dry_base,
            sampling.dry_allowed_length,
            self._reach,
            (ctypes.c_char_p * len(breakers))(*breakers),
            len(breakers),
        )

    def _add_truncation(self, sampling: Sampling, seed: int) -> None:
        if sampling.top_n_sigma > 0.0:
            self._add(lib.llama_sampler_init_top_n_sigma(sampling.top_n_sigma))
        if sampling.top_k > 0:
            self._add(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1.0:
            self._add(lib.llama_sampler_init_typical(sampling.typical_p, 1))
        if sampling.top_p < 1.0:
            self._add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0.0:
            self._add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.xtc_probability > 0.0:
            stage = lib.llama_sampler_init_xtc(
                sampling.xtc_probability, sampling.xtc_threshold, 1, seed
            )
            self._add(stage)

    def _add_temperature(self, sampling: Sampling) -> None:
        if sampling.dynatemp_range > 0.0:
            stage = lib.llama_sampler_init_temp_ext(
                sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
            )
        else:
            stage = lib.llama_sampler_init_temp(sampling.temperature)
        self._add(stage)

    def remember(self, history: Int32s) -> None:
        """What was there before the first draw: DRY looks for repetitions in it, too."""
        if self._looks_back:
            for token in history[-self._reach :].tolist():
                lib.llama_sampler_accept(self._handle, token)

    def accept(self, token: int) -> None:
        """It came without having been drawn."""
        lib.llama_sampler_accept(self._handle, token)

    def sample(self, context: llama.Context, row: int) -> int:
        """Draw from a row of the context's logits as they now are in its memory; `row` counts
        back from the last output, -1."""
        return lib.llama_sampler_sample(self._handle, context.handle, row)

    def sample_possible(self, logits: Floats) -> int:
        """Draw from those tokens whose logit is not minus infinity; one at least."""
        least = float(logits.max()) - _FARTHEST if self.needs_finite else -np.inf
        tokens = np.flatnonzero(logits > least).astype(np.int32)
        if len(tokens) == 1:
            lib.llama_sampler_accept(self._handle, int(tokens[0]))
            return int(tokens[0])
        candidates = np.zeros(len(tokens), CANDIDATE)
        candidates["id"] = tokens
        candidates["logit"] = logits[tokens]
        token = apply(self._handle, candidates)
        lib.llama_sampler_accept(self._handle, token)
        return token

    def free(self) -> None:
        handle, self._handle = self._handle, None
        if handle:
            lib.llama_sampler_free(handle)


def apply(sampler: Any, candidates: npt.NDArray[Any]) -> int:
    """Have a sampler change the logits, the order and perhaps the number of candidates (an array of
    CANDIDATE). The token it chose, if it chooses; else -1."""
    address = ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)
    among = lib.llama_token_data_array(
        data=address, size=len(candidates), selected=-1, sorted=False
    )
    pointer: Any = ctypes.byref(among)
    lib.llama_sampler_apply(sampler, pointer)
    # Some cut at the front by moving the pointer.
    return int(among.data[among.selected].id) if among.selected >= 0 else -1


def _mirostat(sampling: Sampling, vocabulary_size: int, seed: int) -> Any:
    tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
    if sampling.mirostat == 1:
        return lib.llama_sampler_init_mirostat(vocabulary_size, seed, tau, eta, _MIROSTAT_TOKENS)
    return lib.llama_sampler_init_mirostat_v2(seed, tau, eta)

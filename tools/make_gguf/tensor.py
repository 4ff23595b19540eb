"""One tensor of a made-up model: its name, its shape, and what its random weights look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Fill", "Tensor", "decays", "normal", "ones", "signs", "time_steps"]

Fill = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
"""Float32 weights of the given dimensions."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """`dims` as numpy has them: (rows, columns). `is_exact`: float32 whatever the file's type, as
    llama.cpp's kernels ask of vectors and of a recurrent layer's small matrices."""

    name: str
    dims: tuple[int, ...]
    fill: Fill
    is_exact: bool = False


def normal(std: float) -> Fill:
    def fill(rng: np.random.Generator, dims: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(dims, np.float32) * np.float32(std)

    return fill


def ones(rng: np.random.Generator, dims: tuple[int, ...]) -> np.ndarray:
    del rng
    return np.ones(dims, np.float32)


def signs(rng: np.random.Generator, dims: tuple[int, ...]) -> np.ndarray:
    """For the last norm. The residual stream still holds the last token's embedding; with a tied
    output matrix that token would win for ever. Random signs take the two apart."""
    return rng.choice(np.array([-1.0, 1.0], np.float32), dims)


def decays(rng: np.random.Generator, dims: tuple[int, ...]) -> np.ndarray:
    """A state-space layer's A, as Mamba starts training: -1 to -16, so that every state fades."""
    return -rng.uniform(1, 16, dims).astype(np.float32)


def time_steps(rng: np.random.Generator, dims: tuple[int, ...]) -> np.ndarray:
    """The bias that softplus turns into steps of 0.001 to 0.1, evenly spread over the decades."""
    steps = 10.0 ** rng.uniform(-3, -1, dims)
    return np.log(np.expm1(steps)).astype(np.float32)

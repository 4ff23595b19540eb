"""How likely a token was, and which others were; told along with the text it is part of. Pure."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from cortex_core.wire.ipc import TokenScore
from neuron.worker.detokenize import Pieces, new_decoder

__all__ = ["ScoreLog", "Scored", "log_softmax", "scored"]

Floats = npt.NDArray[np.float32]

Scored = tuple[float, list[tuple[int, float]]]
"""A token's log-probability, and those of the likeliest tokens."""


def log_softmax(row: Floats) -> npt.NDArray[np.float64]:
    """Natural logarithms of the probabilities of logits."""
    shifted = row.astype(np.float64) - float(row.max())
    return shifted - np.log(np.exp(shifted).sum())


def scored(row: Floats, token: int, top: int) -> Scored:
    """`row` as the model computed it; `top` tokens at most, the likeliest first."""
    values = log_softmax(row)
    best: list[int] = []
    if top:
        some = np.argpartition(values, -min(top, len(values)))[-top:]
        best = some[np.argsort(-values[some], kind="stable")].tolist()
    return float(values[token]), [(one, float(values[one])) for one in best]


class ScoreLog:
    """Scores wait until the first character of their token is released, as text does that may yet
    turn out to be part of a stop string."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._decoder = new_decoder("replace")
        self._waiting: deque[tuple[int, TokenScore]] = deque()
        self._decoded = 0  # characters
        self._released = 0

    def add(self, token: int, scored: Scored) -> None:
        logprob, top = scored
        piece = self._pieces.piece(token)
        best = [(self._pieces.piece(other), value) for other, value in top]
        self._waiting.append((self._decoded, TokenScore(piece, logprob, best)))
        self._decoded += len(self._decoder.decode(piece))

    def release(self, characters: int) -> list[TokenScore]:
        """Those of the tokens that the next so many characters begin in."""
        self._released += characters
        released: list[TokenScore] = []
        while self._waiting and self._waiting[0][0] < self._released:
            released.append(self._waiting.popleft()[1])
        return released

    def release_all(self) -> list[TokenScore]:
        """No more text comes of what was added."""
        self._decoded += len(self._decoder.decode(b"", True))
        self._released = self._decoded
        released = [score for _, score in self._waiting]
        self._waiting.clear()
        return released

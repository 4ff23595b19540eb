"""From what a request brings to the token ids of its prompt."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import Generate
from neuron.worker.kv import SMALL
from neuron.worker.vocabulary import Vocabulary

__all__ = ["prompt_tokens", "turn_boundaries"]

Int32s = npt.NDArray[np.int32]


def prompt_tokens(vocabulary: Vocabulary, command: Generate) -> Int32s:
    """Raises InvalidRequest for ids that are no tokens, and for a suffix where the model has no
    fill-in-the-middle tokens."""
    if command.suffix is not None:
        return _filled_in(vocabulary, command.prompt, command.suffix)
    return _tokens(vocabulary, command.prompt)


def _tokens(vocabulary: Vocabulary, prompt: str | list[int]) -> Int32s:
    if isinstance(prompt, str):
        return vocabulary.tokenize(prompt)
    wrong = next((id_ for id_ in prompt if not 0 <= id_ < vocabulary.size), None)
    if wrong is not None:
        raise InvalidRequest(
            f"prompt: {wrong} is no token of this model, which has {vocabulary.size}",
            param="prompt",
        )
    return np.array(prompt, np.int32)


def _filled_in(vocabulary: Vocabulary, prompt: str | list[int], suffix: str) -> Int32s:
    if vocabulary.fill_in is None:
        raise InvalidRequest("suffix: this model has no fill-in-the-middle tokens", param="suffix")
    before, after, middle = vocabulary.fill_in
    # Code that writes a special token means its letters: a parsed one would end the file there.
    if isinstance(prompt, str):
        head = vocabulary.tokenize_bare(prompt, parse_special=False)
    else:
        head = _tokens(vocabulary, prompt)
    start = [vocabulary.bos] if vocabulary.adds_bos else []
    tail = vocabulary.tokenize_bare(suffix, parse_special=False)
    parts = ([*start, before], head, [after], tail, [middle])
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def turn_boundaries(prompt: Int32s, end_ids: frozenset[int]) -> tuple[int, ...]:
    """Where a later prompt is likely to part from this one: after its first turn, which a system
    prompt shares with other chats, and after its last, which the next request goes on from."""
    ends = np.flatnonzero(np.isin(prompt, list(end_ids))) + 1
    chosen = sorted({int(ends[0]), int(ends[-1])}) if len(ends) else []
    return tuple(at for at in chosen if min(SMALL, len(prompt) // 2) <= at < len(prompt) - 1)

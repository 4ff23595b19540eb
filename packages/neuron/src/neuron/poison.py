"""Which prompts may have crashed a worker, and which are refused for it. Pure: times are passed in.

A prompt in flight when its worker crashed is a *suspect*. A suspect in flight at another crash is
*poison*: it is refused from then on. Of several suspected together, at most one did it, so the
stream table runs suspects one at a time, and where a crash finds a suspect among others the others
are not blamed: to be there by chance twice is far less likely than to have done it twice. A suspect
that is answered in full is cleared. So the innocent go on after one more try, however many ran
beside the prompt that kills.

Only crashes that the process brought on itself blame anybody (see `worker_policy`): a SIGKILL comes
from outside, from an operator or from the kernel's out-of-memory killer, which takes the largest
process and not the one that asked for too much.

A prompt is known by a hash of everything its computation starts from: the model's files as they
were loaded, so that others under the same name begin afresh, and the text or tokens, but not the
sampling, the length or who asked. Suspicion fades after `fade_s` without a crash, at most `most`
prompts are remembered, and nothing outlives the neuron, because what crashed may have been mended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from cortex_core.errors import PoisonPrompt
from cortex_core.wire import ipc
from neuron.models.identity import Identity

__all__ = ["CRASHES_TO_REFUSE", "Suspects", "fingerprint"]

CRASHES_TO_REFUSE = 2

_encode = msgspec.msgpack.Encoder().encode


def fingerprint(ask: ipc.Ask, files: Identity) -> bytes:
    """16 bytes that stand for `ask` on a model made of `files`."""
    if isinstance(ask, ipc.Generate):
        asked = (ask.model, ask.prompt, ask.suffix)
    else:
        asked = msgspec.structs.replace(ask, request=0)
    return hashlib.blake2b(_encode((files, asked)), digest_size=16).digest()


class _Mark(msgspec.Struct):
    crashes: int
    at: float
    cause: str


class Suspects:
    """The marks of one neuron, over all its workers: a model may come back on another device."""

    def __init__(self, fade_s: float = 3600.0, most: int = 1024) -> None:
        self._fade_s = fade_s
        self._most = most
        self._marks: dict[bytes, _Mark] = {}  # the latest mark last

    def __bool__(self) -> bool:
        """Whether there are any; while there are none, no prompt need be hashed."""
        return bool(self._marks)

    def blame(self, at: float, prompts: Iterable[bytes], cause: str) -> None:
        """`prompts` were in flight when a worker crashed."""
        prompts = set(prompts)
        known = {each for each in prompts if self.is_suspect(each, at)}
        for each in known or prompts:
            before = self._marks.pop(each, None)
            self._marks[each] = _Mark(before.crashes + 1 if before else 1, at, cause)
        while len(self._marks) > self._most:
            del self._marks[next(iter(self._marks))]

    def clear(self, prompt: bytes) -> None:
        """It was answered in full."""
        self._marks.pop(prompt, None)

    def is_suspect(self, prompt: bytes, at: float) -> bool:
        return self._mark(prompt, at) is not None

    def check(self, prompt: bytes, at: float) -> None:
        """Raises PoisonPrompt for one that is refused."""
        mark = self._mark(prompt, at)
        if mark is None or mark.crashes < CRASHES_TO_REFUSE:
            return
        minutes = max(1, round((mark.at + self._fade_s - at) / 60))
        raise PoisonPrompt(
            f"this prompt was being computed at {mark.crashes} crashes of its worker and is "
            f"refused for another {minutes} min; the last: {mark.cause}"
        )

    def _mark(self, prompt: bytes, at: float) -> _Mark | None:
        mark = self._marks.get(prompt)
        if mark is not None and at - mark.at >= self._fade_s:
            del self._marks[prompt]
            return None
        return mark

"""One request being generated: its tokens in, deltas and finally a reason out. Pure but for its
sampler."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cortex_core.outcome import Usage
from cortex_core.wire.ipc import Channel, Delta, FinishReason, Generate, TokenScore
from neuron.worker.detokenize import Pieces, TextStream
from neuron.worker.host_cache import Parked
from neuron.worker.kv import Wait
from neuron.worker.logprobs import ScoreLog
from neuron.worker.reasoning import ReasoningState
from neuron.worker.sampling import Sampler
from neuron.worker.scheduler import Sequence

__all__ = ["Stream"]


class Stream(Sequence):
    """`limit` tokens at most. `token` is the last one chosen; its KV is not computed yet.
    `is_plain`: its tokens are the likeliest, whatever has come before. `is_unending`: no
    end-of-generation token may be chosen, and no sampler sees to that. `todo` are
    the tokens to compute before it runs: the prompt, or for one that `resumes` all it had.
    `deadline` is on the monotonic clock and counts until it has `started`."""

    __slots__ = (
        "_channel",
        "_content",
        "_ends",
        "_header",
        "_reasoning",
        "_scores",
        "_thought",
        "cached",
        "completion",
        "deadline",
        "is_plain",
        "is_unending",
        "limit",
        "parked",
        "prompt",
        "request",
        "resumes",
        "sampler",
        "started",
        "todo",
        "token",
        "wait",
    )

    def __init__(
        self,
        command: Generate,
        prompt: npt.NDArray[np.int32],
        *,
        limit: int,
        ends: frozenset[int],
        pieces: Pieces,
        reasoning: ReasoningState | None,
        sampler: Sampler | None,
        deadline: float = float("inf"),
        stops: tuple[int, ...] = (),
    ) -> None:
        super().__init__(
            prompt_size=len(prompt),
            rank=int(command.priority == "batch"),
            caller=command.caller,
            stops=stops,
        )
        self.request = command.request
        self.prompt = prompt
        self.todo = prompt
        self.deadline = deadline
        self.started = False
        self.resumes = False
        self.wait: Wait | None = None
        self.parked: Parked | None = None
        self.limit = limit
        self.sampler = sampler
        is_limited = reasoning is not None and command.max_thinking_tokens is not None
        self.is_plain = sampler is None and not is_limited
        self.is_unending = command.sampling.ignore_eos and sampler is None
        self.token = -1
        self.cached = 0
        self.completion = 0
        self._ends = ends
        self._content = TextStream(pieces, command.stop)
        self._thought = TextStream(pieces)
        self._scores = None if command.top_logprobs is None else ScoreLog(pieces)
        self._reasoning = reasoning
        self._header = ""  # of a marker that is not yet complete
        self._channel: Channel = "content"
        if reasoning is not None and reasoning.is_inside:
            self._channel = "reasoning"

    @property
    def forced(self) -> int | None:
        """The token that has to come next, if there is only one."""
        return None if self._reasoning is None else self._reasoning.forced

    def take(self, token: int, deltas: list[Delta]) -> FinishReason | None:
        """The answer's next token: append what text it completes; say so if it was the last."""
        self.token = token
        self.completion += 1
        if token in self._ends:
            self.flush(deltas)
            return "stop"
        if self._reasoning is None:
            self._take_content(token, deltas)
        else:
            self._take_tagged(token, self._reasoning, deltas)
        if self._content.is_stopped:
            return "stop"
        if self.sampler is not None and self.sampler.is_complete:
            self.flush(deltas)
            return "stop"
        if self.completion >= self.limit:
            self.flush(deltas)
            return "length"
        return None

    def _take_tagged(self, token: int, reasoning: ReasoningState, deltas: list[Delta]) -> None:
        is_demanded = bool(reasoning.expected)
        channel = reasoning.channel(token)
        if channel != self._channel:
            if is_demanded and self._channel == "reasoning":  # not the model ended it there
                self._thought.drop_part()
            self.flush(deltas)
            self._channel = channel
        if channel == "content":
            self._take_content(token, deltas)
            return
        text = self._thought.push(token)
        if channel == "marker":
            text, self._header = self._header + text, ""
            if reasoning.is_in_header:
                self._header = text
                return
            text += self._thought.flush()
        if text:
            deltas.append(Delta(self.request, text, channel))

    def _take_content(self, token: int, deltas: list[Delta]) -> None:
        text = self._content.push(token)
        if self._scores is None:
            if text:
                deltas.append(Delta(self.request, text))
            return
        assert self.sampler is not None
        assert self.sampler.scored is not None
        self._scores.add(token, self.sampler.scored)
        if text:
            deltas.append(Delta(self.request, text, "content", self._scores.release(len(text))))

    def flush(self, deltas: list[Delta]) -> None:
        """Append text held back in the current channel; no more of it is coming."""
        if self._channel != "content":
            text, self._header = self._header + self._thought.flush(), ""
            if text:
                deltas.append(Delta(self.request, text, self._channel))
            return
        text = self._content.flush()
        scores: list[TokenScore] = []
        if self._scores is not None and not self._content.is_stopped:
            scores = self._scores.release_all()
        if text or scores:
            deltas.append(Delta(self.request, text, "content", scores))

    def suspend(self, held: npt.NDArray[np.int32], parked: Parked | None) -> int:
        """It lost its sequence, which held these tokens; how many it needs to go on. Where they
        were still being computed, again or for the first time, they are but a part of those."""
        self.parked = parked
        self.wait = None
        if self.completion and len(held) >= len(self.todo):
            self.todo, self.resumes = held, True
        return len(self.todo)

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it."""
        return self._content.stopped_by

    @property
    def usage(self) -> Usage:
        inside = self._reasoning.tokens if self._reasoning is not None else 0
        return Usage(len(self.prompt), self.cached, self.completion, inside)

    def free(self) -> None:
        if self.sampler is not None:
            self.sampler.free()

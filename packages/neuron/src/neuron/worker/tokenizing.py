"""Tokenize and Detokenize of one model, on a thread of their own: however long a text is, neither
the control loop nor the model's engine waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from cortex_core.errors import CortexError, Fault, InternalError, InvalidRequest
from cortex_core.outcome import Usage
from cortex_core.wire.ipc import (
    Cancel,
    Computed,
    Detokenize,
    Failed,
    Finished,
    Result,
    Step,
    Text,
    Tokenize,
    Tokens,
)
from neuron.worker.codec import Codec

__all__ = ["Tokenizing"]


class Tokenizing:
    """Close it before its codec's model is freed."""

    def __init__(self, model: str, codec: Codec, emit: Callable[[Step], None]) -> None:
        self._model = model
        self._codec = codec
        self._emit = emit
        self._queue: deque[Tokenize | Detokenize] = deque()
        self._changed = threading.Condition()
        self._fault: Fault | None = None
        self._is_busy = False
        self._thread = threading.Thread(target=self._run, name=f"{model} tokens", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        return not (self._queue or self._is_busy)

    def submit(self, command: Tokenize | Detokenize | Cancel) -> None:
        with self._changed:
            if isinstance(command, Cancel):
                left = [asked for asked in self._queue if asked.request != command.request]
                if len(left) < len(self._queue):
                    self._queue = deque(left)
                    finished = Finished(command.request, "cancelled", Usage())
                    self._emit(Step(self._model, finished=[finished]))
                return
            self._queue.append(command)
            self._changed.notify()

    def close(self, fault: Fault) -> None:
        """Wait for the one in progress; those that wait fail with `fault`."""
        with self._changed:
            self._fault = fault
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_busy = False
                while not (self._queue or self._fault):
                    self._changed.wait()
                if self._fault is not None:
                    left = [Failed(asked.request, self._fault) for asked in self._queue]
                    self._queue.clear()
                    break
                asked = self._queue.popleft()
                self._is_busy = True
            self._emit(self._answer(asked))
        if left:
            self._emit(Step(self._model, failed=left))

    def _answer(self, asked: Tokenize | Detokenize) -> Step:
        fault: Fault
        try:
            result, count = (
                self._tokens(asked) if isinstance(asked, Tokenize) else self._text(asked)
            )
        except CortexError as error:
            fault = error.fault
        except Exception as error:
            fault = InternalError(f"{self._model}: cannot read the vocabulary: {error!r}").fault
        else:
            finished = Finished(asked.request, "stop", Usage(prompt=count))
            return Step(
                self._model, computed=[Computed(asked.request, result)], finished=[finished]
            )
        return Step(self._model, failed=[Failed(asked.request, fault)])

    def _tokens(self, asked: Tokenize) -> tuple[Result, int]:
        codec = self._codec
        ids = codec.tokenize(
            asked.text, add_special=asked.ends == "all", parse_special=asked.parse_special
        )
        if asked.ends == "prompt" and codec.adds_bos and (len(ids) == 0 or ids[0] != codec.bos):
            ids = np.concatenate((np.array([codec.bos], np.int32), ids))
        pieces = None
        if asked.with_pieces:
            pieces = {token: codec.piece(token) for token in np.unique(ids).tolist()}
        return Tokens(ids.astype("<i4").tobytes(), pieces), len(ids)

    def _text(self, asked: Detokenize) -> tuple[Result, int]:
        ids = np.frombuffer(asked.ids, "<i4")
        wrong = self._codec.unknown(ids)
        if wrong is not None:
            raise InvalidRequest(
                f"tokens: {wrong} is no token of this model, which has {self._codec.size}",
                param="tokens",
            )
        return Text(self._codec.detokenize(ids)), len(ids)

"""The loop of one embedding or reranking model: requests in, one pass per llama_decode, whole
answers out. To the control loop it has the same face as `engine.Engine`.

One thread runs it and alone touches the llama_context. Texts of all waiting requests share passes.
As in the engine, a failed pass never goes on with a context in doubt.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cortex_core.errors import (
    ContextLengthExceeded,
    CortexError,
    Fault,
    InternalError,
    InvalidRequest,
    NoCapacity,
    Overrun,
    UpstreamFailed,
)
from cortex_core.outcome import Usage
from cortex_core.wire.ipc import (
    Cancel,
    Computed,
    Embed,
    Failed,
    Finished,
    ModelKind,
    ModelLoad,
    Rank,
    Scores,
    Started,
    Step,
    Vectors,
)
from neuron.worker import llama
from neuron.worker.codec import Codec
from neuron.worker.load import LoadedPooler
from neuron.worker.pairs import PairEncoder
from neuron.worker.passes import Passes
from neuron.worker.wait_policy import WaitPolicy

__all__ = ["EmbeddingEngine", "normalized", "scores"]

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
T = TypeVar("T")

_RERANK_TEMPLATE = "tokenizer.chat_template.rerank"
_REFUSED = {1: "no free cells for the batch", -1: "the batch is not valid"}
"""llama_decode's codes that leave the context as it was; only the pass's requests fail."""


def normalized(vectors: Floats, dimensions: int | None) -> Floats:
    """(texts, width): the first `dimensions` of each, at length 1. One of length 0 stays as it
    is."""
    cut = vectors[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.divide(cut, lengths, out=cut.copy(), where=lengths > 0)


def scores(outputs: Floats) -> list[float]:
    """From a classifier's (texts, labels). One label is a logit; of two, the first is the
    probability of yes."""
    first = outputs[:, 0].astype(np.float64)
    if outputs.shape[1] == 1:
        # Both forms are the logistic function; each is exact where the other overflows.
        small = np.exp(-np.abs(first))
        first = np.where(first >= 0, 1 / (1 + small), small / (1 + small))
    return first.tolist()


@dataclass(eq=False)
class _Request:
    """`rows` of what the model made of its texts, those that are `done`. It is to be started
    before `deadline` (monotonic)."""

    asked: Embed | Rank
    texts: list[Int32s]
    rows: Floats
    deadline: float
    done: int = 0
    is_started: bool = False

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))


class EmbeddingEngine:
    """`emit` takes every Step, `die` ends the process with a message and does not return."""

    def __init__(
        self,
        name: str,
        loaded: LoadedPooler,
        *,
        emit: Callable[[Step], None],
        die: Callable[[str], None],
        wait_policy: WaitPolicy | None = None,
    ) -> None:
        self.kind: ModelKind = loaded.info.kind
        self._name = name
        self._loaded = loaded
        self._context = loaded.context
        self._codec = Codec(loaded.model.vocabulary)
        self._emit = emit
        self._die = die
        self._wait_policy = wait_policy or WaitPolicy(None)
        self._inbox: deque[Embed | Rank | Cancel] = deque()
        self._arrival = threading.Condition()
        self._is_stopping = False
        self._stop_fault: Fault | None = None
        self._requests: dict[int, _Request] = {}
        self._passes = Passes(self._context.plan.rows, self._context.texts)
        self._steps = 0
        self._step_began = 0.0
        self._failures = 0

    # any thread

    def submit(self, command: Embed | Rank | Cancel) -> None:
        self._inbox.append(command)
        with self._arrival:
            self._arrival.notify()

    def stop(self, fault: Fault) -> None:
        """End `run` after the pass in progress; requests still there fail with `fault`."""
        self._stop_fault = fault
        self._is_stopping = True
        with self._arrival:
            self._arrival.notify()

    @property
    def is_idle(self) -> bool:
        return not (self._inbox or self._requests)

    def state(self) -> ModelLoad:
        """The load now; `step_s` ages while a pass hangs."""
        began = self._step_began
        running = sum(request.is_started for request in list(self._requests.values()))
        return ModelLoad(
            model=self._name,
            steps=self._steps,
            generated=0,
            running=running,
            waiting=len(self._requests) - running + len(self._inbox),
            step_s=time.monotonic() - began if began else 0.0,
        )

    # the engine's thread

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._is_stopping:
            if self._inbox or self._requests:
                self._turn()
                continue
            self._wait_policy.rest()
            with self._arrival:
                while not (self._inbox or self._is_stopping):
                    self._arrival.wait()
        self._drain()
        if self._stop_fault is not None:
            self._fail(list(self._requests), self._stop_fault)

    def close(self) -> None:
        self._context.free()
        self._loaded.held.close()

    def _turn(self) -> None:
        self._drain()
        self._expire()
        chosen = self._passes.next()
        if not chosen:
            return
        self._begin({request for request, _ in chosen})
        texts = [self._requests[request].texts[index] for request, index in chosen]
        self._step_began = time.monotonic()
        try:
            code, outputs = self._context.compute(texts)
            self._check(code, outputs)
            self._failures = 0
        except CortexError as error:
            self._fail({request for request, _ in chosen}, error.fault)
        except Exception as error:
            self._start_over(error)
        else:
            for (request, index), row in zip(chosen, outputs, strict=True):
                self._put(self._requests[request], index, row)
        finally:
            self._step_began = 0.0
            self._steps += 1
        self._wait_policy.stepped()

    def _check(self, code: int, outputs: Floats) -> None:
        """Raises CortexError where the pass's requests alone are lost, RuntimeError where the
        context is."""
        if code != 0:
            cause = "; ".join(llama.take_lines())
            if code in _REFUSED:
                message = f"llama.cpp: {_REFUSED[code]} ({code}) {cause}".rstrip()
                raise NoCapacity(message)
            raise RuntimeError(f"llama_decode failed with {code} {cause}".rstrip())
        if not np.isfinite(outputs).all():
            raise UpstreamFailed(f"{self._name}: the model gave numbers that are not finite")

    def _drain(self) -> None:
        while self._inbox:
            command = self._inbox.popleft()
            if isinstance(command, Cancel):
                if self._requests.pop(command.request, None) is not None:
                    self._passes.remove(command.request)
                    finished = Finished(command.request, "cancelled", Usage())
                    self._emit(Step(self._name, finished=[finished]))
                continue
            try:
                self._accept(command)
            except CortexError as error:
                self._refuse(command, error)
            except Exception as error:
                self._refuse(command, InternalError(f"cannot take the request: {error!r}"))

    def _refuse(self, command: Embed | Rank, error: CortexError) -> None:
        self._emit(Step(self._name, failed=[Failed(command.request, error.fault)]))

    def _accept(self, command: Embed | Rank) -> None:
        width = self._context.width
        if isinstance(command, Embed):
            if command.dimensions is not None and command.dimensions > width:
                raise InvalidRequest(
                    f"dimensions: must be at most {width}, the size of this model's embeddings; "
                    f"got {command.dimensions}",
                    param="dimensions",
                )
            texts = [self._tokens_of(text, at) for at, text in _named("input", command.inputs)]
        else:
            template = self._loaded.info.metadata.get(_RERANK_TEMPLATE, "")
            pairs = PairEncoder(self._codec, template, command.query)
            texts = [pairs.encode(document) for document in command.documents]
        named = _named("input" if isinstance(command, Embed) else "documents", texts)
        for at, tokens in named:
            self._check_length(tokens, at)
        rows = np.empty((len(texts), width), np.float32)
        deadline = time.monotonic() + self._loaded.params.max_wait_s
        self._requests[command.request] = _Request(command, texts, rows, deadline)
        self._passes.add(command.request, [len(tokens) for tokens in texts])

    def _tokens_of(self, text: str | list[int], at: str) -> Int32s:
        if isinstance(text, str):
            return self._codec.tokenize(text, add_special=True, parse_special=False)
        ids = np.array(text, np.int32)
        wrong = self._codec.unknown(ids)
        if wrong is not None:
            raise InvalidRequest(
                f"{at}: {wrong} is no token of this model, which has {self._codec.size}", param=at
            )
        return ids

    def _check_length(self, tokens: Int32s, at: str) -> None:
        most = self._context.plan.context
        if len(tokens) > most:
            raise ContextLengthExceeded(
                f"{at}: this model's maximum context length is {most} tokens, but this text has "
                f"{len(tokens)}",
                param=at,
                overrun=Overrun(len(tokens), most),
            )
        if len(tokens) == 0:
            raise InvalidRequest(f"{at}: has no tokens", param=at)

    def _expire(self) -> None:
        """Those who have waited too long hear it."""
        now = time.monotonic()
        late = [
            number
            for number, request in self._requests.items()
            if not request.is_started and now >= request.deadline
        ]
        if late:
            message = (
                f"the model {self._name!r} had no pass for the request within "
                f"{self._loaded.params.max_wait_s:g} s (engine.max_wait_s)"
            )
            self._fail(late, NoCapacity(message).fault)

    def _begin(self, requests: set[int]) -> None:
        new = [self._requests[request] for request in sorted(requests)]
        new = [request for request in new if not request.is_started]
        for request in new:
            request.is_started = True
        if new:
            started = [Started(request.asked.request, request.size, 0) for request in new]
            self._emit(Step(self._name, started=started))

    def _put(self, request: _Request, index: int, row: Floats) -> None:
        request.rows[index] = row
        request.done += 1
        if request.done < len(request.texts):
            return
        asked = request.asked
        if isinstance(asked, Embed):
            vectors = normalized(request.rows, asked.dimensions)
            result = Vectors(vectors.astype("<f4").tobytes(), vectors.shape[1])
        else:
            result = Scores(scores(request.rows))
        del self._requests[asked.request]
        self._emit(
            Step(
                self._name,
                computed=[Computed(asked.request, result)],
                finished=[Finished(asked.request, "stop", Usage(prompt=request.size))],
            )
        )

    def _fail(self, requests: Sequence[int] | set[int], fault: Fault) -> None:
        for request in requests:
            del self._requests[request]
            self._passes.remove(request)
        if requests:
            failed = [Failed(request, fault) for request in sorted(requests)]
            self._emit(Step(self._name, failed=failed))

    def _start_over(self, error: Exception) -> None:
        cause = f"{self._name}: a pass failed: {error or repr(error)}"
        self._fail(list(self._requests), UpstreamFailed(cause).fault)
        self._failures += 1
        if self._failures > 1:
            self._die(f"{cause}; so did the pass before")
        try:
            self._context.free()
            self._context = self._loaded.open_context()
        except llama.LlamaError as second:
            self._die(f"{cause}; no new context: {second.message} {'; '.join(second.lines)}")


def _named(name: str, items: Sequence[T]) -> list[tuple[str, T]]:
    """Each with what to call it in an error."""
    if len(items) == 1:
        return [(name, items[0])]
    return [(f"{name}[{index}]", item) for index, item in enumerate(items)]

"""Requests to a real worker that are not generations: one command in, one whole answer out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cortex_core.errors import Fault
from cortex_core.wire.ipc import (
    Ask,
    Cancel,
    Finished,
    Result,
    Scores,
    Started,
    Step,
    Text,
    Tokens,
    Vectors,
)
from tests.unit.worker.worker_process import WorkerProcess

__all__ = ["AskingWorker", "Reply", "packed"]


@dataclass
class Reply:
    """All a worker said about one request."""

    started: Started | None = None
    result: Result | None = None
    finished: Finished | None = None
    fault: Fault | None = None

    @property
    def is_over(self) -> bool:
        return self.finished is not None or self.fault is not None

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """(texts, width)"""
        assert isinstance(self.result, Vectors), self
        return np.frombuffer(self.result.data, "<f4").reshape(-1, self.result.width)

    @property
    def scores(self) -> list[float]:
        assert isinstance(self.result, Scores), self
        return self.result.values

    @property
    def tokens(self) -> list[int]:
        assert isinstance(self.result, Tokens), self
        return np.frombuffer(self.result.ids, "<i4").tolist()

    @property
    def text(self) -> str:
        assert isinstance(self.result, Text), self
        return self.result.data.decode()


def packed(ids: list[int]) -> bytes:
    return np.array(ids, "<i4").tobytes()


class AskingWorker(WorkerProcess):
    def __init__(self) -> None:
        super().__init__()
        self.replies: dict[int, Reply] = {}

    def begin(self, ask: Ask) -> Reply:
        """`ask.request` is the caller's to choose."""
        reply = self.replies[ask.request] = Reply()
        self.send(ask)
        return reply

    def reply(self, ask: Ask) -> Reply:
        reply = self.begin(ask)
        self.wait_until(lambda: reply.is_over)
        return reply

    def withdraw(self, request: int) -> None:
        self.send(Cancel(request))

    def _note(self, step: Step) -> None:
        for started in step.started:
            assert self.replies[started.request].started is None
            self.replies[started.request].started = started
        for computed in step.computed:
            reply = self.replies[computed.request]
            assert reply.result is None
            assert not reply.is_over
            reply.result = computed.result
        for ended in (*step.finished, *step.failed):
            reply = self.replies[ended.request]
            assert not reply.is_over, "a request ends once"
            if isinstance(ended, Finished):
                reply.finished = ended
            else:
                reply.fault = ended.fault

"""An engine driven turn by turn on this thread, and what became of its requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cortex_core.errors import Fault
from cortex_core.outcome import Usage
from cortex_core.wire.ipc import (
    Constraint,
    EngineParams,
    FinishReason,
    Generate,
    Grammar,
    Sampling,
    Step,
)
from neuron.worker.engine import Engine
from neuron.worker.load import LoadedModel
from tests.unit.worker.loading import load_here
from tests.unit.worker.worker_process import GREEDY

__all__ = ["Driven", "Told", "driven"]


class Told:
    """All that was said about one request."""

    def __init__(self) -> None:
        self.text = ""
        self.thought = ""
        self.deltas: list[Any] = []
        self.reason: FinishReason | None = None
        self.stop: str | None = None
        self.usage = Usage()
        self.fault: Fault | None = None

    @property
    def is_over(self) -> bool:
        return self.reason is not None or self.fault is not None


class Driven:
    def __init__(self, path: str, **params: Any) -> None:
        settings: dict[str, Any] = {"parallel": 4, "context": 512} | params
        loaded = load_here(path, EngineParams(**settings))
        assert isinstance(loaded, LoadedModel)
        self.loaded = loaded
        self.vocabulary = loaded.model.vocabulary
        self.told: dict[int, Told] = {}
        self.engine = Engine("m", loaded, emit=self._note, die=self._die)

    def _die(self, message: str) -> None:
        raise AssertionError(message)

    def _note(self, step: Step) -> None:
        for delta in step.deltas:
            told = self.told[delta.request]
            told.deltas.append(delta)
            if delta.channel == "content":
                told.text += delta.text
            elif delta.channel == "reasoning":
                told.thought += delta.text
        for finished in step.finished:
            self.told[finished.request].reason = finished.reason
            self.told[finished.request].usage = finished.usage
            self.told[finished.request].stop = finished.stop
        for failed in step.failed:
            self.told[failed.request].fault = failed.fault

    def submit(self, prompt: str | list[int], sampling: Sampling = GREEDY, **more: Any) -> Told:
        request = len(self.told) + 1
        told = self.told[request] = Told()
        self.engine.submit(Generate(request, "m", prompt, sampling, **more))
        return told

    def run(self) -> None:
        """Until all requests are over."""
        while not all(told.is_over for told in self.told.values()):
            self.engine._turn()

    def answer(self, prompt: str | list[int], sampling: Sampling = GREEDY, **more: Any) -> Told:
        told = self.submit(prompt, sampling, **more)
        self.run()
        return told

    def constrained(
        self, kind: Any, text: str, prompt: str = "on", sampling: Sampling = GREEDY, **more: Any
    ) -> Told:
        constraint: Constraint = Grammar(kind, text, "it")
        return self.answer(prompt, sampling, constraint=constraint, **more)


@contextmanager
def driven(path: str, **params: Any) -> Iterator[Driven]:
    driven = Driven(path, **params)
    try:
        yield driven
    finally:
        driven.engine.close()

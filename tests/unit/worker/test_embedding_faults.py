"""What an embedding model's engine does when a pass goes wrong, on the engine's own thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

from cortex_core.errors import Fault, NoCapacity, PreflightFailed
from cortex_core.wire.ipc import Cancel, Computed, Detokenize, Embed, EngineParams, Failed, Step
from neuron.worker import llama
from neuron.worker.embedding import EmbeddingEngine
from neuron.worker.load import LoadedPooler
from neuron.worker.pooled import PooledContext
from neuron.worker.tokenizing import Tokenizing
from tests.unit.worker.loading import free_here, load_here
from tools.make_gguf import BertShape, make_gguf

Compute = Callable[[PooledContext, Any], Any]


class ProcessEndedError(BaseException):
    pass


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    llama.start()
    return str(make_gguf(tmp_path_factory.mktemp("bert") / "bert.gguf", BertShape()))


def _load(path: str, **params: Any) -> LoadedPooler:
    loaded = load_here(path, EngineParams(**params))
    assert isinstance(loaded, LoadedPooler)
    return loaded


class Bench:
    """An engine driven turn by turn, and what it emitted."""

    def __init__(self, path: str, **params: Any) -> None:
        self.steps: list[Step] = []
        self.last_words = ""
        self.loaded = _load(path, **params)
        emit = self.steps.append
        self.engine = EmbeddingEngine("m", self.loaded, emit=emit, die=self.die)

    def die(self, message: str) -> None:
        self.last_words = message
        raise ProcessEndedError

    def embed(self, request: int, *inputs: str) -> None:
        self.engine.submit(Embed(request, "m", list(inputs)))

    def turn(self) -> None:
        self.engine._turn()  # pyright: ignore[reportPrivateUsage]

    @property
    def failed(self) -> list[Failed]:
        return [failed for step in self.steps for failed in step.failed]

    @property
    def computed(self) -> list[Computed]:
        return [computed for step in self.steps for computed in step.computed]


@pytest.fixture
def bench(path: str) -> Iterator[Bench]:
    bench = Bench(path)
    yield bench
    bench.engine.close()


def _returns(code: int) -> Compute:
    return lambda context, texts: (code, np.empty((0, context.width), np.float32))


def _broken(context: PooledContext, texts: Any) -> Any:
    return 0, np.full((len(texts), context.width), np.nan, np.float32)


@pytest.mark.parametrize(
    ("compute", "code", "told"),
    [
        (_returns(1), "no_capacity", "no free cells"),
        (_returns(-1), "no_capacity", "not valid"),
        (_broken, "upstream_failed", "not finite"),
    ],
)
def test_a_pass_that_is_refused_costs_its_own_requests_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, compute: Compute, code: str, told: str
):
    long = "a " * 500
    bench.embed(1, long)
    bench.embed(2, long)
    with monkeypatch.context() as patch:
        patch.setattr(PooledContext, "compute", compute)
        bench.turn()
    bench.turn()
    (failed,) = bench.failed
    assert (failed.request, failed.fault.code) == (1, code)
    assert told in failed.fault.message
    assert [computed.request for computed in bench.computed] == [2]
    assert bench.engine.is_idle


def test_a_pass_that_fails_ends_every_request_and_the_next_one_has_a_new_context(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    before = bench.engine._context  # pyright: ignore[reportPrivateUsage]
    bench.embed(1, "a " * 500)
    bench.embed(2, "a " * 500)
    with monkeypatch.context() as patch:
        patch.setattr(PooledContext, "compute", _returns(-3))
        bench.turn()
    assert {failed.request for failed in bench.failed} == {1, 2}
    assert {failed.fault.code for failed in bench.failed} == {"upstream_failed"}
    assert before.handle is None
    bench.embed(3, "b")
    bench.turn()
    assert [computed.request for computed in bench.computed] == [3]


def test_two_passes_that_fail_in_a_row_end_the_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PooledContext, "compute", _returns(-3))
    bench.embed(1, "a")
    bench.turn()
    bench.embed(2, "a")
    with pytest.raises(ProcessEndedError):
        bench.turn()
    assert "so did the pass before" in bench.last_words
    assert {failed.request for failed in bench.failed} == {1, 2}


def test_no_new_context_ends_the_process(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def refuse() -> PooledContext:
        raise llama.LlamaError("cannot", ["out of luck"])

    monkeypatch.setattr(PooledContext, "compute", _returns(-3))
    bench.loaded.open_context = refuse
    bench.embed(1, "a")
    with pytest.raises(ProcessEndedError):
        bench.turn()
    assert "no new context: cannot out of luck" in bench.last_words


def test_a_bug_in_taking_a_request_fails_that_request(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("neuron.worker.codec.Codec.tokenize", _raise)
        bench.embed(1, "a")
        bench.turn()
    (failed,) = bench.failed
    assert failed.fault.code == "internal_error"
    bench.embed(2, "a")
    bench.turn()
    assert [computed.request for computed in bench.computed] == [2]


def _raise(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("a bug")


def test_who_waits_too_long_hears_it(path: str):
    bench = Bench(path, max_wait_s=0.0)
    bench.embed(1, "a")
    bench.turn()
    (failed,) = bench.failed
    assert failed.fault.code == "no_capacity"
    assert "within 0 s (engine.max_wait_s)" in failed.fault.message
    assert bench.engine.is_idle
    bench.engine.close()


def test_a_cancel_of_nothing_changes_nothing(bench: Bench):
    bench.engine.submit(Cancel(9))
    bench.turn()
    assert bench.steps == []


def test_its_state_tells_who_runs_and_who_waits(bench: Bench):
    bench.embed(1, "a " * 500, "a " * 500)
    bench.embed(2, "a " * 500)
    assert bench.engine.state().waiting == 2
    bench.turn()
    state = bench.engine.state()
    assert (state.steps, state.running, state.waiting) == (1, 1, 1)
    assert state.step_s == 0.0


# loading


@pytest.mark.parametrize(
    ("compute", "kind", "told"),
    [
        (_returns(-3), "gguf_unsupported", "the first decode failed with -3"),
        (_broken, "gguf_corrupt", "not finite"),
    ],
)
def test_a_model_that_cannot_compute_is_not_loaded(
    path: str, monkeypatch: pytest.MonkeyPatch, compute: Compute, kind: str, told: str
):
    monkeypatch.setattr(PooledContext, "compute", compute)
    with pytest.raises(PreflightFailed, match=told) as refused:
        _load(path)
    assert refused.value.code == kind


def test_a_context_without_memory_is_no_capacity(path: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> Any:
        raise llama.LlamaError("cannot create", ["failed to allocate compute buffers"])

    monkeypatch.setattr(PooledContext, "_open", staticmethod(refuse))
    with pytest.raises(NoCapacity, match="not enough memory"):
        _load(path)


def test_an_encoder_that_does_not_say_how_it_pools_takes_the_mean(tmp_path: Path, path: str):
    class Silent(BertShape):
        def metadata(self) -> Any:
            known = super().metadata()
            del known["pooling_type"]
            return known

    silent, mean = _load(str(make_gguf(tmp_path / "s.gguf", Silent()))), _load(path)
    tokens = [np.array([2, 9, 8, 3], np.int32)]
    assert silent.info.kind == "embed"
    assert np.array_equal(silent.context.compute(tokens)[1], mean.context.compute(tokens)[1])
    for loaded in (silent, mean):
        free_here(loaded)


# tokenizing


class BrokenCodec:
    size = 10

    def unknown(self, ids: object) -> int | None:
        raise llama.LlamaError("cannot")


def test_a_vocabulary_that_fails_is_a_fault_and_the_next_question_is_answered():
    steps: Queue[Step] = Queue()
    tokenizing = Tokenizing("m", BrokenCodec(), steps.put)  # pyright: ignore[reportArgumentType]
    for request in (1, 2):
        tokenizing.submit(Detokenize(request, "m", b""))
        (failed,) = steps.get(timeout=10).failed
        assert (failed.request, failed.fault.code) == (request, "internal_error")
    tokenizing.close(Fault("no_capacity", "unloaded"))
    assert tokenizing.is_idle

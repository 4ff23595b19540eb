"""Greedy tokens do not depend on where a prompt's beginning came from, nor on who else runs.

For each kind of memory llama.cpp keeps, with random weights: real llama.cpp, real engine, turn by
turn on this thread. Random weights make near ties likely, so the least difference in the numbers
would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cortex_core.wire.ipc import (
    EngineParams,
    Generate,
    Pause,
    Resume,
    Sampling,
    Started,
    Step,
)
from neuron.worker.engine import Engine
from neuron.worker.host_cache import HostCache, space_of
from neuron.worker.load import LoadedModel
from neuron.worker.stream import Stream
from neuron.worker.tile import TILE, Tile
from neuron.worker.vocabulary import Vocabulary
from tests.unit.worker.loading import load_here
from tests.unit.worker.worker_process import TINY, chat
from tools.make_gguf import PRESETS, make_gguf

ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
ANSWER = 24
HOST_BYTES = 256 * 2**20

KINDS = {
    "plain": "tiny-llama",
    "sliding window": "tiny-sliding",
    "recurrent": "tiny-mamba",
    "hybrid": "tiny-hybrid",
}
TRIMMABLE = ("plain", "sliding window")

Files = Callable[[str], str]
Serve = Callable[..., "Served"]
Cold = Callable[..., list[int]]
Tokens = dict[int, list[int]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("kinds")

    def make(kind: str) -> str:
        path = folder / f"{KINDS[kind]}.gguf"
        if not path.exists():
            make_gguf(str(path), PRESETS[KINDS[kind]], file_type="Q8_0", seed=7)
        return str(path)

    return make


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Tokens:
    """request → every token chosen for it."""
    seen: Tokens = {}
    take = Stream.take

    def noting(self: Stream, token: int, deltas: Any) -> Any:
        seen.setdefault(self.request, []).append(token)
        return take(self, token, deltas)

    monkeypatch.setattr(Stream, "take", noting)
    return seen


class Served:
    """One loaded model and its engine, driven by hand."""

    def __init__(
        self,
        path: str,
        host: HostCache | None = None,
        tile: Tile | None = None,
        **params: Any,
    ) -> None:
        settings: dict[str, Any] = {"parallel": 4, "context": 1024, "max_step_ms": 0} | params
        wanted = EngineParams(**settings)
        loaded = load_here(path, wanted)
        assert isinstance(loaded, LoadedModel)
        loaded.tile = tile  # models this small have none by themselves
        self.steps: list[Step] = []
        self.host = HostCache(HOST_BYTES) if host is None else host
        self.engine = Engine(
            "model",
            loaded,
            emit=self.steps.append,
            die=lambda message: pytest.fail(message),
            host=self.host,
            space=space_of(loaded.files, wanted),
        )
        self.vocabulary = loaded.model.vocabulary

    def submit(self, request: int, prompt: list[int], answer: int = ANSWER) -> None:
        self.engine.submit(Generate(request, "model", prompt, ENDLESS, answer))

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.engine._turn()

    def pause(self, request: int) -> None:
        self.engine.submit(Pause(request))
        self.turns(1)

    def resume(self, request: int) -> None:
        self.engine.submit(Resume(request))

    def finish(self) -> None:
        """Until all who are not paused have ended."""
        engine = self.engine
        while engine._inbox or engine._scheduler.has_work:
            engine._turn()
        assert not [failed for step in self.steps for failed in step.failed]
        state = engine.state()
        assert state.paused or (engine.is_idle and state.cells_running == 0)

    def ask(self, request: int, prompt: list[int], answer: int = ANSWER) -> Started:
        self.submit(request, prompt, answer)
        self.finish()
        return self.started(request)

    def started(self, request: int) -> Started:
        (found,) = [s for step in self.steps for s in step.started if s.request == request]
        return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def serve(files: Files) -> Iterator[Serve]:
    opened: list[Served] = []

    def open_(kind: str, **params: Any) -> Served:
        opened.append(Served(files(kind), **params))
        return opened[-1]

    yield open_
    for served in opened:
        served.engine.close()


def prompt(seed: int, size: int) -> list[int]:
    """Random tokens that are neither special nor end anything."""
    return np.random.default_rng(seed).integers(300, 900, size).tolist()


def turns(vocabulary: Vocabulary, *texts: list[int]) -> list[int]:
    """The texts, each ended as a turn of a chat is."""
    end = min(vocabulary.end_ids)
    return [token for text in texts for token in (*text, end)]


@pytest.fixture
def cold(serve: Serve, kind: str, taken: Tokens) -> Cold:
    """What a prompt is answered with by a model that has never seen anything."""

    def answer(tokens: list[int], count: int = ANSWER) -> list[int]:
        served = serve(kind, host=HostCache(0))
        served.ask(9999, tokens, count)
        return taken.pop(9999)

    return answer


@pytest.fixture
def gone_on(serve: Serve, kind: str, taken: Tokens, cold: Cold) -> Cold:
    """What a conversation's next turn is answered with when nothing was saved or restored.

    For all kinds but one that is a cold run. In the hybrid kind llama.cpp's numbers for a token
    depend on whether it was computed alone, as an answer's are, or with others, as a prompt's: so
    there it is a run that went on in place.
    """

    def answer(talk: list[int], longer: list[int]) -> list[int]:
        if kind != "hybrid":
            return cold(longer)
        served = serve(kind, host=HostCache(0))
        served.ask(9998, talk)
        assert served.ask(9999, longer).source == "cache"
        return taken.pop(9999)

    return answer


def test_a_prefix_from_one_that_has_ended(
    serve: Serve, kind: str, taken: Tokens, cold: Cold
) -> None:
    served = serve(kind)
    system = turns(served.vocabulary, prompt(1, 300))
    first, second = (
        [*system, *turns(served.vocabulary, prompt(seed, 40)), 301, 302] for seed in (2, 3)
    )
    served.ask(1, first)
    started = served.ask(2, second)
    assert started.cached >= len(system)
    assert started.source == ("cache" if kind in TRIMMABLE else "host")
    assert taken[2] == cold(second)


def test_a_conversation_that_goes_on(serve: Serve, kind: str, taken: Tokens, gone_on: Cold) -> None:
    served = serve(kind)
    talk = [*turns(served.vocabulary, prompt(1, 200)), 301, 302]
    served.ask(1, talk)
    longer = [*talk, *taken[1][:-1], *prompt(2, 30)]
    started = served.ask(2, longer)
    assert started.cached == len(talk) + ANSWER - 1
    assert started.source == "cache"
    assert taken[2] == gone_on(talk, longer)


@pytest.mark.parametrize("kind", TRIMMABLE)
@pytest.mark.parametrize("kv", ["partitioned", "unified"])
def test_a_prefix_of_which_a_part_is_computed_again_to_fill_a_tile(
    serve: Serve, kind: str, taken: Tokens, cold: Cold, kv: str
) -> None:
    served = serve(kind, parallel=1, kv=kv, tile=Tile(0.0))
    talk = [*turns(served.vocabulary, prompt(1, 200)), 301, 302]
    served.ask(1, talk)
    longer = [*talk, *taken[1][:-1], *prompt(2, 30)]
    started = served.ask(2, longer)
    assert (started.cached, started.source) == (len(longer) - TILE, "cache")
    assert taken[2] == cold(longer)


def test_a_prefix_that_is_being_prefilled(
    serve: Serve, kind: str, taken: Tokens, cold: Cold
) -> None:
    served = serve(kind)
    system = turns(served.vocabulary, prompt(1, 300))
    prompts = [
        [*system, *turns(served.vocabulary, prompt(10 + n, 30 + n)), 301, 302] for n in range(4)
    ]
    for request, tokens in enumerate(prompts):
        served.submit(request, tokens)
    served.finish()
    for request, tokens in enumerate(prompts):
        started = served.started(request)
        if request:
            assert started.cached >= len(system)
            assert started.source == ("live" if kind in TRIMMABLE else "host")
        assert taken[request] == cold(tokens)


def test_a_conversation_that_was_parked_in_host_memory(
    serve: Serve, kind: str, taken: Tokens, gone_on: Cold
) -> None:
    served = serve(kind, parallel=1, kv="partitioned")
    talk = [*turns(served.vocabulary, prompt(1, 200)), 301, 302]
    served.ask(1, talk)
    served.ask(2, prompt(5, 400))
    longer = [*talk, *taken[1][:-1], *prompt(2, 30)]
    started = served.ask(3, longer)
    assert started.cached == len(talk) + ANSWER - 1
    assert started.source == "host"
    assert taken[3] == gone_on(talk, longer)


def test_a_conversation_from_before_the_model_was_loaded_again(
    serve: Serve, kind: str, files: Files, taken: Tokens, gone_on: Cold
) -> None:
    host = HostCache(HOST_BYTES)
    before = Served(files(kind), host=host)
    talk = [*turns(before.vocabulary, prompt(1, 200)), 301, 302]
    before.ask(1, talk)
    before.engine.close()
    served = serve(kind, host=host)
    longer = [*talk, *taken[1][:-1], *prompt(2, 30)]
    started = served.ask(2, longer)
    assert (started.cached, started.source) == (len(talk) + ANSWER - 1, "host")
    assert taken[2] == gone_on(talk, longer)


def test_what_was_parked_in_another_layout_cannot_be_read_and_that_is_said(
    files: Files, taken: Tokens
) -> None:
    host, answers = HostCache(HOST_BYTES), []
    for layout, miss in (("partitioned", "empty"), ("unified", "unusable")):
        served = Served(files("plain"), host, kv=layout)
        started = served.ask(1, prompt(1, 200))
        assert (started.cached, started.source, started.miss) == (0, "none", miss)
        served.engine.close()
        answers.append(taken.pop(1))
    assert answers[0] == answers[1]


def test_a_conversation_from_before_the_worker_was_restarted(
    serve: Serve, kind: str, files: Files, taken: Tokens, gone_on: Cold, tmp_path: Path
) -> None:
    before = Served(files(kind))
    talk = [*turns(before.vocabulary, prompt(1, 200)), 301, 302]
    before.ask(1, talk)
    before.engine.close()
    before.host.save(tmp_path)
    host = HostCache()
    host.restore(tmp_path)
    served = serve(kind, host=host)
    longer = [*talk, *taken[1][:-1], *prompt(2, 30)]
    assert served.ask(2, longer).source == "host"
    assert taken[2] == gone_on(talk, longer)


def test_whoever_else_runs(serve: Serve, kind: str, taken: Tokens, cold: Cold) -> None:
    served = serve(kind)
    prompts = [prompt(20 + n, 20 + 37 * n) for n in range(4)]
    served.submit(0, prompts[0])
    served.turns(5)
    for request in (1, 2, 3):
        served.submit(request, prompts[request])
    served.finish()
    assert [taken[n] for n in range(4)] == [cold(tokens) for tokens in prompts]


def test_chunks_while_others_run(serve: Serve, kind: str, taken: Tokens, cold: Cold) -> None:
    served = serve(kind, max_step_ms=0.001)
    served.submit(1, prompt(1, 30), 60)
    served.turns(5)
    long = prompt(2, 300)
    served.submit(2, long)
    served.finish()
    assert taken[2] == cold(long)
    assert taken[1] == cold(prompt(1, 30), 60)


def test_a_pause(serve: Serve, kind: str, taken: Tokens, cold: Cold) -> None:
    served = serve(kind)
    stopped, other = prompt(1, 60), prompt(2, 90)
    served.submit(1, stopped, 60)
    served.turns(20)
    served.pause(1)
    said = len(taken[1])
    served.ask(2, other, 60)
    assert len(taken[1]) == said
    served.resume(1)
    served.finish()
    assert taken[1] == cold(stopped, 60)
    assert taken[2] == cold(other, 60)


@pytest.mark.parametrize("host_mb", [0, 256], ids=["computed again", "parked"])
def test_a_pause_in_which_another_took_the_place(
    serve: Serve, kind: str, taken: Tokens, cold: Cold, host_mb: int
) -> None:
    if kind == "hybrid" and not host_mb:
        pytest.skip("a hybrid model's numbers for an answer differ when it is computed as a prompt")
    served = serve(kind, parallel=1, kv="partitioned", host=HostCache(host_mb * 2**20))
    stopped, other = prompt(1, 200), prompt(2, 300)
    served.submit(1, stopped, 60)
    served.turns(20)
    served.pause(1)
    served.ask(2, other)
    assert taken[2] == cold(other)
    assert served.engine.state().paused == 1
    assert bool(served.host.size(served.engine._space)) == bool(host_mb)
    served.resume(1)
    served.finish()
    assert taken[1] == cold(stopped, 60)


# the unified layout: sums run over everybody's cells, so that the order of their parts, and with it
# the last bits, depend on where a sequence's cells lie. What stays is what the layout promises: all
# tokens of a decided model, whoever shares its cells.


@pytest.mark.parametrize("cells", [0, 300], ids=["roomy", "overflowing"])
def test_one_pool_answers_as_slots_of_their_own_do(taken: Tokens, cells: int) -> None:
    system = "Say hello to everybody who is listening to us on this fine day. " * 3
    countries = ("France", "Japan", "Peru", "Kenya")
    apart = Served(TINY, kv="partitioned")
    pool = Served(TINY, kv="unified", cells=cells, context=256)
    for served, offset in ((apart, 0), (pool, 10)):
        for request, country in enumerate(countries):
            question = chat(f"What is the capital of {country}?", thinking=True)
            text = f"<|im_start|>system\n{system}<|im_end|>\n{question}"
            served.submit(offset + request, served.vocabulary.tokenize(text).tolist(), 60)
        served.finish()
        served.engine.close()
    assert [taken[10 + n] for n in range(4)] == [taken[n] for n in range(4)]
    sources = [pool.started(10 + n).source for n in range(4)]
    assert sources == ["none", "live", "live", "live"] or cells


def test_those_who_outgrow_the_pool_go_on_as_if_nothing_had_happened(taken: Tokens) -> None:
    pool = Served(TINY, kv="unified", cells=256, context=256, parallel=4)
    suspended: list[int] = []
    suspend = pool.engine._memory.suspend

    def noting(sequence: int, tokens: Any) -> Any:
        suspended.append(len(tokens))
        return suspend(sequence, tokens)

    pool.engine._memory.suspend = noting
    for request in range(4):
        pool.submit(request, pool.vocabulary.tokenize(chat("Who are you?")).tolist(), 150)
    pool.finish()
    pool.engine.close()
    assert suspended, "150 tokens each for four are more than 256 cells"
    assert pool.host.size(pool.engine._space) <= HOST_BYTES
    alone = Served(TINY, kv="partitioned", context=256, parallel=1)
    alone.ask(9, alone.vocabulary.tokenize(chat("Who are you?")).tolist(), 150)
    alone.engine.close()
    for request in range(4):
        assert len(taken[request]) == 150
        assert taken[request] == taken[9]


@pytest.mark.parametrize("host_mb", [0, 256], ids=["computed again", "parked"])
def test_the_paused_make_way_in_the_pool_before_those_who_run(taken: Tokens, host_mb: int) -> None:
    host = HostCache(host_mb * 2**20)
    pool = Served(TINY, host, kv="unified", cells=256, context=256, parallel=2)
    question = pool.vocabulary.tokenize(chat("Who are you?")).tolist()
    made_way: list[int] = []
    suspend = pool.engine._scheduler.suspend

    def noting(sequence: Stream, prompt_size: int) -> None:
        made_way.append(sequence.request)
        suspend(sequence, prompt_size)

    pool.engine._scheduler.suspend = noting
    pool.submit(1, question, 150)
    pool.submit(2, question, 150)
    pool.turns(80)
    pool.pause(1)
    pool.finish()
    assert made_way == [1]
    assert (len(taken[1]) < 150, len(taken[2])) == (True, 150)
    pool.ask(3, prompt(1, 200), 8)
    pool.resume(1)
    pool.finish()
    pool.engine.close()
    assert made_way == [1]
    assert taken[1] == taken[2]


def test_a_paused_one_gives_up_its_seat_in_the_pool_and_keeps_its_cells(taken: Tokens) -> None:
    pool = Served(TINY, kv="unified", cells=512, context=256, parallel=1)
    stopped, other = (
        pool.vocabulary.tokenize(chat(question)).tolist() for question in ("Hello", "Who are you?")
    )
    pool.submit(1, stopped, 60)
    pool.turns(30)
    pool.pause(1)
    pool.ask(2, other)
    assert pool.engine.state().paused == 1
    assert pool.host.size(pool.engine._space) == 0
    pool.resume(1)
    pool.finish()
    assert len(taken[1]) == 60
    pool.ask(3, stopped, 60)
    pool.engine.close()
    assert taken[1] == taken[3]


def test_what_was_put_aside_in_the_pool_is_parked_and_comes_back(taken: Tokens) -> None:
    pool = Served(TINY, kv="unified", cells=768, context=512, parallel=2)
    talks = [[*pool.vocabulary.tokenize(chat("Hello")).tolist(), *prompt(n, 120)] for n in range(9)]
    for request, talk in enumerate(talks):
        pool.ask(request, talk, 8)
    sources = []
    for request, talk in enumerate(talks):
        started = pool.ask(100 + request, [*talk, *taken[request][:-1], *prompt(50, 20)], 8)
        assert started.cached == len(talk) + 7
        sources.append(started.source)
    pool.engine.close()
    assert sources[0] == "host", "nine of 128 tokens are more than 768 cells"

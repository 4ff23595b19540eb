"""The engine's step by itself, without HTTP: how much of it is llama.cpp's, and what the ways of
keeping the weights in memory do to it and to a prompt.

    python -m tests.bench.steps [--widths STREAMS ...] [--rounds N]

One engine for each way, all in one process; they take turns.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from statistics import median

from cortex_core.wire.ipc import EngineParams, Generate, Sampling
from neuron.worker.engine import Engine
from neuron.worker.load import LoadedModel
from tests.bench import peers
from tests.bench.engine import prompts
from tests.unit.worker.loading import load_here

TOKENS = 60
PARALLEL = 16
CONTEXT = 512
PROMPT_TOKENS = 448
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # as the neuron starts its workers
ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
WAYS = {
    "read": EngineParams(mmap=False),
    "mapped": EngineParams(mmap=True),
    "as they are": EngineParams(mmap=False, repack=False),
}


class Timed:
    """An engine of which each step's time is taken, and llama.cpp's part of it."""

    def __init__(self, how: EngineParams) -> None:
        path = str(peers.model("qwen3-0.6b", "Q4_K_M"))
        params = EngineParams(
            parallel=PARALLEL, context=CONTEXT, threads=2, mmap=how.mmap, repack=how.repack
        )
        loaded = load_here(path, params)
        assert isinstance(loaded, LoadedModel)
        self._engine = Engine("m", loaded, emit=lambda _: None, die=sys.exit)
        self._computing_s = 0.0
        self._context, compute = loaded.context, loaded.context.decode

        def decode(rows: int) -> int:
            began = time.perf_counter()
            code = compute(rows)
            self._computing_s += time.perf_counter() - began
            return code

        self._context.decode = decode

    def burst(self, width: int, name: str) -> tuple[float, float]:
        """Median ms of a step of so many rows, and of what of it is not llama.cpp's."""
        for stream in range(width):
            text = prompts.chatml(prompts.say(f"{name}, stream {stream}: hello."))
            command = Generate(stream + 1, "m", text, ENDLESS, max_tokens=TOKENS)
            self._engine.submit(command)
        steps: list[tuple[float, float]] = []
        while self._engine.state().running or self._engine.state().waiting:
            self._computing_s, began = 0.0, time.perf_counter()
            self._engine._turn()  # pyright: ignore[reportPrivateUsage]
            took_s = time.perf_counter() - began
            steps.append((1000 * took_s, 1000 * (took_s - self._computing_s)))
        decoding = steps[3:-2]  # not the prompts, nor those that end first
        return median(step for step, _ in decoding), median(rest for _, rest in decoding)

    def prompt(self, name: str) -> float:
        """Ms of a prompt of PROMPT_TOKENS, in one step. It leaves nothing behind."""
        context = self._context
        seed = random.Random(name)
        count = PROMPT_TOKENS
        context.trim(0, 0)
        context.tokens[:count] = [seed.randrange(100, 100_000) for _ in range(count)]
        context.positions[:count] = range(count)
        context.sequences[:count] = 0
        context.outputs[:count] = 0
        context.outputs[count - 1] = 1
        began = time.perf_counter()
        code = context.decode(count)
        took_s = time.perf_counter() - began
        assert code == 0, code
        context.trim(0, 0)
        return 1000 * took_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="STREAMS"
    )
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != HUGE_PAGES:  # it is read when a process starts
        again = [sys.executable, "-m", "tests.bench.steps", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | {"GLIBC_TUNABLES": HUGE_PAGES})
    ways = {name: Timed(how) for name, how in WAYS.items()}
    first, *others = ways
    print(f"weights {first}; the ratios: time of others, over this")
    print("rows  step ms  not llama.cpp's", *(f"{name:>21}" for name in others))

    prompted: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(-1, given.rounds):
        for name, engine in _in_turn(ways, round_):
            took = engine.prompt(f"round {round_}")
            if round_ >= 0:  # the first is to warm up
                prompted[name].append(took)
    print(f"{PROMPT_TOKENS:4}  {median(prompted[first]):7.1f}  {'':15}", *_cells(prompted))
    for width in given.widths:
        steps: dict[str, list[float]] = {name: [] for name in ways}
        rests: list[float] = []
        for round_ in range(-1, given.rounds):
            for name, engine in _in_turn(ways, round_):
                step, rest = engine.burst(width, f"round {round_}")
                if round_ >= 0:
                    steps[name].append(step)
                    if name == first:
                        rests.append(rest)
        print(f"{width:4}  {median(steps[first]):7.1f}  {median(rests):15.2f}", *_cells(steps))


def _in_turn(ways: dict[str, Timed], round_: int) -> list[tuple[str, Timed]]:
    """Whoever comes first has no advantage."""
    turn = list(ways.items())
    return turn if round_ % 2 else turn[::-1]


def _cells(times: dict[str, list[float]]) -> list[str]:
    """Of all ways but the first: the median of the rounds' ratios to it, and their range."""
    base, *others = times.values()
    cells: list[str] = []
    for other in others:
        ratios = [theirs / ours for theirs, ours in zip(other, base, strict=True)]
        span = f"({min(ratios):.2f} to {max(ratios):.2f})"
        cells.append(f"{median(ratios):.2f} {span}".rjust(21))
    return cells


if __name__ == "__main__":
    main()

"""The engine's step by itself, without HTTP: how much of it is llama.cpp's, and what reading the
weights wins over mapping them.

    python -m tests.bench.steps [--widths STREAMS ...] [--rounds N]

One engine has its weights read, the other mapped, both in one process; they take turns.
"""

from __future__ import annotations

import argparse
import os
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
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # as the neuron starts its workers
ENDLESS = Sampling(temperature=0.0, ignore_eos=True)


class Timed:
    """An engine of which each step's time is taken, and llama.cpp's part of it."""

    def __init__(self, *, mmap: bool) -> None:
        path = str(peers.model("qwen3-0.6b", "Q4_K_M"))
        params = EngineParams(parallel=PARALLEL, context=512, threads=2, mmap=mmap)
        loaded = load_here(path, params)
        assert isinstance(loaded, LoadedModel)
        self._engine = Engine("m", loaded, emit=lambda _: None, die=sys.exit)
        self._computing_s = 0.0
        context, compute = loaded.context, loaded.context.decode

        def decode(rows: int) -> int:
            began = time.perf_counter()
            code = compute(rows)
            self._computing_s += time.perf_counter() - began
            return code

        context.decode = decode

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 16], metavar="STREAMS")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != HUGE_PAGES:  # it is read when a process starts
        again = [sys.executable, "-m", "tests.bench.steps", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | {"GLIBC_TUNABLES": HUGE_PAGES})
    read, mapped = Timed(mmap=False), Timed(mmap=True)
    print("rows  step ms  not llama.cpp's  read / mapped")
    for width in given.widths:
        ratios: list[float] = []
        found: list[tuple[float, float]] = []
        for round_ in range(-1, given.rounds):
            order = (read, mapped) if round_ % 2 else (mapped, read)
            took = {engine: engine.burst(width, f"round {round_}") for engine in order}
            if round_ >= 0:  # the first is to warm up
                found.append(took[read])
                ratios.append(took[read][0] / took[mapped][0])
        step, rest = (median(each) for each in zip(*found, strict=True))
        span = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{width:4}  {step:7.1f}  {rest:15.2f}  {median(ratios):.2f} {span}")


if __name__ == "__main__":
    main()

"""What threads that compute make of the cores they have: alone, beside a busy process, and beside
a second model that has nothing to do.

    python -m tests.bench.cores [--widths STREAMS ...] [--rounds N]

One worker process for each way of waiting at OpenMP's barriers, in turn: as it comes, with a spin
count that stays as it is, and with libgomp's own. The 0.6B, as many threads as cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from statistics import median

from rich.console import Console

from tests.bench import peers
from tests.bench.engine import prompts
from tests.bench.engine.rounds import new_table
from tests.unit.worker.neighbours import busy
from tests.unit.worker.worker_process import ENDLESS, WorkerProcess

TOKENS = 40
WAYS = {
    "as it comes": {},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 300,000": {"GOMP_SPINCOUNT": "300000"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 8], metavar="STREAMS")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    first, *others = WAYS
    headings = [first, *(f"{name} (of it)" for name in others)]
    table = new_table("decode tokens/s of a worker", "cores", "streams", *headings)
    with ExitStack() as stack:
        workers = [stack.enter_context(WorkerProcess(environment=how)) for how in WAYS.values()]
        for worker in workers:
            _load(worker, "m")
        for situation in ("alone", "a busy process beside", "an idle model beside"):
            if situation == "an idle model beside":
                for worker in workers:
                    _load(worker, "n")
            with busy() if situation == "a busy process beside" else ExitStack():
                for width in given.widths:
                    rates = [[_rate(each, width) for each in workers] for _ in range(given.rounds)]
                    base, *rest = ([r[index] for r in rates] for index in range(len(workers)))
                    cells = [f"{median(rate):.1f} ({_share(rate, base):.2f})" for rate in rest]
                    table.add_row(situation, str(width), f"{median(base):.1f}", *cells)
    table.caption = f"medians of {given.rounds} rounds"
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _share(rates: list[float], base: list[float]) -> float:
    return median(rate / ours for rate, ours in zip(rates, base, strict=True))


def _load(worker: WorkerProcess, name: str) -> None:
    model = str(peers.model("qwen3-0.6b", "Q4_K_M"))
    worker.load(name, model, threads=len(os.sched_getaffinity(0)), parallel=8, context=512)
    worker.ask(prompts.chatml(prompts.say("hello")), model=name, sampling=ENDLESS, max_tokens=4)


def _rate(worker: WorkerProcess, width: int) -> float:
    """Tokens a second, prompts included."""
    texts = [prompts.chatml(prompts.say(f"stream {index}: hello.")) for index in range(width)]
    began = time.perf_counter()
    answers = [worker.start(text, model="m", sampling=ENDLESS, max_tokens=TOKENS) for text in texts]
    worker.finish(*answers)
    return width * TOKENS / (time.perf_counter() - began)


if __name__ == "__main__":
    main()

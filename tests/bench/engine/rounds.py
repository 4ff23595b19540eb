"""Taking turns: each server measured alone on the machine, round after round, and the ratios."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from statistics import median
from typing import TypeVar

from rich.table import Table

from tests.bench.engine.prompts import say
from tests.bench.engine.servers import Server
from tests.bench.engine.streams import run_streams

__all__ = ["all_running", "new_table", "ratio_cells", "stopped", "take_turns", "warm"]

T = TypeVar("T")
Measure = Callable[[Server, int], Awaitable[T]]


@asynccontextmanager
async def all_running(servers: Sequence[Server]):
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.running())
        yield


async def take_turns(
    servers: Sequence[Server],
    rounds: int,
    measure: Measure[T],
    warm_up: Callable[[Server], Awaitable[object]] | None = None,
) -> list[list[T]]:
    """Rounds of one measurement of each server, A B A B …; per server its measurements.

    While one is measured the others are stopped, so that their idle threads take no time from it.
    """
    results: list[list[T]] = [[] for _ in servers]
    for round_ in range(-1, rounds):
        for server, result in zip(servers, results, strict=True):
            with stopped([other for other in servers if other is not server]):
                if round_ >= 0:
                    result.append(await measure(server, round_))
                else:
                    await (warm_up or warm)(server)
    return results


async def warm(server: Server) -> None:
    """A few tokens, so that the weights are in memory and nothing is done for the first time."""
    await run_streams(server, [say("Are you there?")], 4)


@contextmanager
def stopped(servers: Sequence[Server]) -> Iterator[None]:
    pids = [pid for server in servers for pid in server.pids]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):  # children first: a parent may miss them otherwise
            os.kill(pid, signal.SIGCONT)


def ratio_cells(above: Sequence[float], below: Sequence[float]) -> tuple[str, str]:
    """Median of the rounds' ratios, and their range."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"


def new_table(title: str, *headings: str) -> Table:
    """All columns but the first are numbers."""
    # As wide as a caption: a narrow table would break its own in two.
    table = Table(title=title, title_justify="left", caption_justify="left", min_width=80)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table

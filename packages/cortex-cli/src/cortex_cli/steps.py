"""What is being waited for, shown as it happens: one line per step, ticked off when done."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from cortex_cli.terminal import console, plain
from cortex_cli.units import duration

__all__ = ["Step", "Steps"]

_REDRAW_S = 0.1


class Step:
    """`progress`, 0 to 1, is drawn when it is set; `result` is what the finished line says."""

    def __init__(self) -> None:
        self.progress: float | None = None
        self.result = ""


class Steps:
    """Prints to stdout; on a terminal the running step is animated."""

    def __init__(self) -> None:
        self._console = console()

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[Step]:
        """Runs the body as a step. When the body raises, the line is left unticked."""
        step = Step()
        began_s = time.monotonic()
        drawing = asyncio.create_task(self._draw(name, step))
        try:
            yield step
        finally:
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drawing
        took = duration(time.monotonic() - began_s)
        tick = "✓" if self._console.encoding.startswith("utf") else "ok"
        result = plain(step.result)
        line = Text.assemble((tick, "green"), f" {name:<9}{result}", (f"  {took}", "dim"))
        self._console.print(line, soft_wrap=True)

    async def _draw(self, name: str, step: Step) -> None:
        if not self._console.is_terminal:
            return
        # Redrawn from this task: rich's own thread would be running while children are forked.
        lines = Progress(
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            console=self._console,
            transient=True,
            auto_refresh=False,
        )
        with lines:
            task = lines.add_task(name, total=None)
            while True:
                if step.progress is not None:
                    lines.update(task, completed=step.progress, total=1.0)
                lines.refresh()
                await asyncio.sleep(_REDRAW_S)

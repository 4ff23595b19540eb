"""One log line per request, written in batches.

Python's logging costs more per line than the gateway's whole routing does, so these lines take
their own way to the same stream, in the same form, a moment later.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TextIO

from cortex_core.outcome import Outcome

__all__ = ["RequestLog", "line_of"]

# How late a line may be; also what is lost when the process is killed.
FLUSH_AFTER_S = 0.05


class RequestLog:
    """`write` needs a running loop. The owner calls `flush` when it stops."""

    def __init__(self, stream: TextIO, level: int) -> None:
        self._stream = stream
        self._level = level
        self._lines: list[str] = []
        self._second = -1
        self._prefix = ""

    def write(self, outcome: Outcome) -> None:
        """A failure of a node is a warning; everything else is for information."""
        is_warning = outcome.kind in ("upstream_failed", "stalled")
        if self._level > (logging.WARNING if is_warning else logging.INFO):
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_AFTER_S, self.flush)
        level = "warning" if is_warning else "info"
        self._lines.append(f"{self._now()} {level} cortex.request {line_of(outcome)}\n")

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write("".join(lines))
            self._stream.flush()

    def _now(self) -> str:
        """UTC, as everywhere in our logs; each second is formatted once."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int((now - second) * 1000):03d}Z"


def line_of(outcome: Outcome) -> str:
    """`"request" key=value …`; what a client chose freely is quoted where it must be."""
    line = (
        f'"request" kind={outcome.kind} request_id={outcome.request_id}'
        f" model={_value(outcome.model)} node={outcome.node or '-'} status={outcome.status}"
        f" streamed={outcome.streamed}"
    )
    if outcome.code is not None:
        line += f" code={outcome.code}"
    if outcome.retries:
        line += f" retries={outcome.retries}"
    if outcome.queued_s:
        line += f" queued_s={outcome.queued_s:.4f}"
    if outcome.load_s is not None:
        line += f" load_s={outcome.load_s:.4f}"
    if outcome.ttft_s is not None:
        line += f" ttft_s={outcome.ttft_s:.4f}"
    line += f" total_s={outcome.total_s:.4f}"
    usage = outcome.usage
    if usage is not None:
        line += (
            f" prompt={usage.prompt} cached={usage.cached}"
            f" completion={usage.completion} reasoning={usage.reasoning}"
        )
    return line


def _value(text: str) -> str:
    """A value that can neither be mistaken for two nor break the line."""
    if text.isprintable() and " " not in text and '"' not in text and "=" not in text:
        return text[:200] or "-"
    return json.dumps(text[:200])

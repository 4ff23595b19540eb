"""Structured one-line logs: `time level logger "message" key=value …` on stderr, stdlib logging.

`get(__name__)` gives a logger whose methods take the facts as keywords; plain stdlib loggers (ours
or a library's) go through the same formatter.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

__all__ = ["Log", "configure", "get", "handler"]

_NEEDS_QUOTES = frozenset(' "=\n\r\t\\')


class Log:
    """A stdlib logger with keyword facts."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: str, /, **facts: Any) -> None:
        self._emit(logging.DEBUG, message, facts)

    def info(self, message: str, /, **facts: Any) -> None:
        self._emit(logging.INFO, message, facts)

    def warning(self, message: str, /, **facts: Any) -> None:
        self._emit(logging.WARNING, message, facts)

    def error(self, message: str, /, **facts: Any) -> None:
        self._emit(logging.ERROR, message, facts)

    def exception(self, message: str, /, **facts: Any) -> None:
        self._emit(logging.ERROR, message, facts, exc_info=True)

    def _emit(
        self, level: int, message: str, facts: dict[str, Any], exc_info: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", message, extra={"facts": facts}, exc_info=exc_info)


def get(name: str) -> Log:
    return Log(logging.getLogger(name))


class _Formatter(logging.Formatter):
    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        stamp = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"
        parts = [stamp, record.levelname.lower(), record.name, _quoted(record.getMessage())]
        facts: dict[str, Any] = getattr(record, "facts", {})
        parts += [f"{name}={_value(value)}" for name, value in facts.items() if value is not None]
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return _quoted(text) if not text or _NEEDS_QUOTES & set(text) else text


def _quoted(text: str) -> str:
    """One line whatever the text holds: a log line is a record, and clients can influence it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in escaped) + '"'


def handler(stream: TextIO) -> logging.Handler:
    """Writes our format to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter())
    return handler


def configure(level: str) -> None:
    """Send every log line to stderr in our format, from `level` upwards."""
    root = logging.getLogger()
    root.handlers[:] = [handler(sys.stderr)]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))
    # Its news (where it listens) is ours to tell.
    logging.getLogger("hypercorn").setLevel(max(logging.WARNING, root.level))

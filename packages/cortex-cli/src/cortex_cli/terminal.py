"""The consoles, and what may be written to them.

Tables and answers go to stdout; everything about how it went, to stderr. Text that came from a
model or a server is printed as text: never as markup, never as terminal control codes.
"""

from __future__ import annotations

import os
import re
import sys

import click
from rich.console import Console
from rich.text import Text

__all__ = [
    "complain",
    "console",
    "emit_json",
    "end_stdout",
    "err_console",
    "note",
    "note_forgetting",
    "plain",
]

# A table in a pipe has no window to fit into; the default of 80 columns would cut cells short.
_PIPE_WIDTH = 200

# C0 without tab and newline, DEL, C1: a model must not move the cursor or retitle the window.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def console() -> Console:
    """Stdout. Made anew for each use, so that it follows a redirected `sys.stdout`."""
    return _console(stderr=False)


def err_console() -> Console:
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if is_terminal else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, emoji=False)


def plain(text: str) -> str:
    """The text without control characters; tabs and newlines stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def complain(message: str, *, code: str | None = None, details: list[str] | None = None) -> None:
    """One red line on stderr, with the lines that prove it below."""
    line = Text.assemble(("error: ", "bold red"), (plain(message), "red"))
    if code:
        line.append(f" [{code}]", "dim")
    out = err_console()
    out.print(line, soft_wrap=True)
    for detail in details or ():
        out.print(Text(f"  {plain(detail)}", "dim"), soft_wrap=True)


def note(message: str) -> None:
    """A dim remark on stderr."""
    err_console().print(Text(plain(message), "dim"), soft_wrap=True)


def note_forgetting(kept: bool) -> None:
    """What was ordered holds now; `kept`: also after a restart of the gateway."""
    if not kept:
        note("not written down (gateway.state_dir): forgotten when the gateway ends")


def emit_json(raw: bytes) -> None:
    """JSON to stdout, undecorated."""
    click.echo(raw)


def end_stdout() -> None:
    """Write what is left; what cannot be written (a full disk) is thrown away, so that the
    interpreter does not fail with it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

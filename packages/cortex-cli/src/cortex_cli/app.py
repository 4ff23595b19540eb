"""The command group and the one edge where errors become a line on stderr and an exit code.

Exit codes: 0 done; 1 it failed; 2 wrong usage or configuration; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
from typing import Any

import click

from cortex_cli import __version__
from cortex_cli.failure import Failure
from cortex_cli.terminal import complain, end_stdout
from cortex_core.config.loader import ConfigError
from cortex_core.errors import CortexError

__all__ = ["cortex"]

# In the order of a newcomer's day. Loaded on demand: `cortex status` need not import the gateway.
_COMMANDS = {
    "up": "up",
    "status": "status",
    "models": "models",
    "chat": "chat",
    "render": "render",
    "load": "load",
    "unload": "load",
    "pin": "pin",
    "unpin": "pin",
    "drain": "node",
    "undrain": "node",
    "explain": "explain",
    "reload": "reload",
    "serve": "serve",
    "config": "config",
    "demo": "demo",
}


class _Edge(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        return getattr(importlib.import_module(f"cortex_cli.commands.{module}"), cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            complain(str(error))
            ctx.exit(2)
        except CortexError as error:
            complain(error.message, code=error.code)
            ctx.exit(1)
        except Failure as error:
            complain(error.message, details=error.details)
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(130)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # nobody reads the output any more: click ends in silence
            end_stdout()
            what = f"{error.filename}: " if error.filename else ""
            complain(what + str(error.strerror or error).lower())
            ctx.exit(1)


@click.command(
    cls=_Edge,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.",
)
@click.version_option(__version__, prog_name="cortex")
def cortex() -> None:
    """One URL over a handful of boxes that serve GGUF models."""

"""`cortex reload`: the gateway reads its configuration again."""

from __future__ import annotations

import asyncio

import click

from cortex_cli.gateway import Gateway, url_option
from cortex_cli.terminal import console, plain
from cortex_core.envelopes.admin import Reloaded

__all__ = ["reload"]


@click.command(short_help="Have the gateway read its files again.")
@url_option
def reload(url: str) -> None:
    """Have the gateway read cortex.toml and models.toml again. What differs takes effect; no
    request is cut short. A file with a mistake changes nothing."""
    changed = asyncio.run(_call(url)).changed
    console().print(plain("changed: " + ", ".join(changed) if changed else "nothing has changed"))


async def _call(url: str) -> Reloaded:
    async with Gateway(url) as gateway:
        return await gateway.reload()

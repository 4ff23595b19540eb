"""`cortex pin` and `cortex unpin`: whether a model may be evicted."""

from __future__ import annotations

import asyncio

import click
import msgspec

from cortex_cli.gateway import Gateway, url_option
from cortex_cli.terminal import console, note_forgetting, plain

__all__ = ["pin", "unpin"]


class _Pinned(msgspec.Struct, frozen=True):
    """`kept`: see `note_forgetting`."""

    kept: bool = True


@click.command(short_help="Keep a model where it is.")
@click.argument("model")
@url_option
def pin(url: str, model: str) -> None:
    """Let this gateway never evict MODEL, wherever it is; another gateway still may. It is not
    loaded by this. Remembered until `cortex unpin`."""
    note_forgetting(asyncio.run(_call(url, model, True)))
    kept = f"this gateway evicts {model} for nobody; `cortex unpin {model}` takes it back"
    console().print(plain(kept))


@click.command(short_help="Let a pinned model be evicted.")
@click.argument("model")
@url_option
def unpin(url: str, model: str) -> None:
    """Let MODEL be evicted again, unless the catalogue pins it."""
    note_forgetting(asyncio.run(_call(url, model, False)))
    console().print(plain(f"{model} may be evicted"))


async def _call(url: str, model: str, is_pinned: bool) -> bool:
    async with Gateway(url) as gateway:
        answer = await gateway.pin(model, is_pinned)
    return msgspec.json.decode(answer, type=_Pinned).kept

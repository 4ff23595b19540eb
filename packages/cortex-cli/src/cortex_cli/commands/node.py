"""`cortex drain` and `cortex undrain`: whether a node gets anything new."""

from __future__ import annotations

import asyncio

import click
import msgspec

from cortex_cli.gateway import Gateway, url_option
from cortex_cli.terminal import console, note, note_forgetting, plain

__all__ = ["drain", "undrain"]


class _Told(msgspec.Struct, frozen=True):
    """`not_told`: why the node itself does not know. `kept`: see `note_forgetting`."""

    not_told: str | None = None
    kept: bool = True


@click.command(short_help="Send a node nothing new.")
@click.argument("node")
@url_option
def drain(url: str, node: str) -> None:
    """Send NODE no new requests and no models; what runs there finishes. Remembered until
    `cortex undrain`."""
    _tell(url, node, True)
    console().print(plain(f"{node} gets nothing new; `cortex undrain {node}` takes it back"))


@click.command(short_help="Use a drained node again.")
@click.argument("node")
@url_option
def undrain(url: str, node: str) -> None:
    """Use NODE again."""
    _tell(url, node, False)
    console().print(plain(f"{node} is used again"))


def _tell(url: str, node: str, is_draining: bool) -> None:
    told = msgspec.json.decode(asyncio.run(_call(url, node, is_draining)), type=_Told)
    if told.not_told is not None:
        note(f"this gateway knows; the node does not: {told.not_told}")
    note_forgetting(told.kept)


async def _call(url: str, node: str, is_draining: bool) -> bytes:
    async with Gateway(url) as gateway:
        return await gateway.drain(node, is_draining)

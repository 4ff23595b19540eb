"""`cortex models`: every model of the fleet and where it is."""

from __future__ import annotations

import asyncio

import click
import msgspec

from cortex_cli.gateway import Gateway, url_option
from cortex_cli.terminal import console, emit_json
from cortex_cli.views import catalogue
from cortex_core.envelopes.models import ModelList

__all__ = ["models"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs: the body of /v1/models.")
@url_option
def models(url: str, as_json: bool) -> None:
    """List the models of the fleet."""
    raw, listed = asyncio.run(_fetch(url))
    if as_json:
        emit_json(msgspec.json.format(raw, indent=2))
    elif listed.data:
        console().print(catalogue(listed))
    else:
        console().print("no models; load one with `cortex load MODEL`")


async def _fetch(url: str) -> tuple[bytes, ModelList]:
    async with Gateway(url) as gateway:
        raw = await gateway.models_json()
        return raw, gateway.read_models(raw)

"""`cortex status`: nodes, devices, memory, models and what is in flight."""

from __future__ import annotations

import asyncio

import click
import msgspec

from cortex_cli.gateway import Gateway, url_option
from cortex_cli.terminal import console, emit_json
from cortex_cli.views import device_table, fleet_line, model_table, troubles
from cortex_core.envelopes.admin import FleetView

__all__ = ["status"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@url_option
def status(url: str, as_json: bool) -> None:
    """Show nodes, devices, memory, models and what is in flight."""
    raw, view = asyncio.run(_fetch(url))
    if as_json:
        emit_json(msgspec.json.format(raw, indent=2))
        return
    out = console()
    out.print(fleet_line(view, url))
    if not view.nodes:
        return
    for part in (device_table(view), model_table(view)):
        if part.row_count:
            out.print()
            out.print(part)
    if lines := troubles(view):
        out.print()
        for line in lines:
            out.print(line, soft_wrap=True)


async def _fetch(url: str) -> tuple[bytes, FleetView]:
    async with Gateway(url) as gateway:
        raw = await gateway.fleet_json()
        return raw, gateway.read_fleet(raw)

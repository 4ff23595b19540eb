"""`cortex explain`: why the fleet does what it does."""

from __future__ import annotations

import asyncio

import click
import msgspec

from cortex_cli.commands.load import absolute
from cortex_cli.gateway import Gateway, url_option
from cortex_cli.terminal import console, emit_json
from cortex_cli.views import placement_lines, request_lines
from cortex_core.envelopes.admin import PlacementExplained, RequestExplained

__all__ = ["explain"]


@click.group()
def explain() -> None:
    """Say why the fleet does what it does."""


@explain.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@url_option
def placement(url: str, model: str, as_json: bool) -> None:
    """Say where a request for MODEL would go now, and why; nothing is done."""
    raw, explained = asyncio.run(_placement(url, absolute(model)))
    if as_json:
        emit_json(msgspec.json.format(raw, indent=2))
        return
    for line in placement_lines(explained):
        console().print(line, soft_wrap=True)


@explain.command()
@click.argument("request_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@url_option
def request(url: str, request_id: str, as_json: bool) -> None:
    """Say what became of the request with this ID (the x-request-id of its answer)."""
    raw, explained = asyncio.run(_request(url, request_id))
    if as_json:
        emit_json(msgspec.json.format(raw, indent=2))
        return
    for line in request_lines(explained):
        console().print(line, soft_wrap=True)


async def _placement(url: str, model: str) -> tuple[bytes, PlacementExplained]:
    async with Gateway(url) as gateway:
        raw = await gateway.placement_json(model)
        return raw, gateway.read_placement(raw)


async def _request(url: str, request_id: str) -> tuple[bytes, RequestExplained]:
    async with Gateway(url) as gateway:
        raw = await gateway.request_json(request_id)
        return raw, gateway.read_request(raw)

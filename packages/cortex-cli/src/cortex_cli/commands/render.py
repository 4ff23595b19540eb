"""`cortex render`: what a model is told, to the last token, without an answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TextIO

import click
import msgspec

from cortex_cli.commands.load import absolute
from cortex_cli.failure import Failure
from cortex_cli.gateway import Gateway, url_option
from cortex_cli.terminal import emit_json, note, plain

__all__ = ["Rendered", "Token", "lines", "render"]


class Token(msgspec.Struct, frozen=True):
    """`piece`: text, or the bytes of what is no whole character."""

    id: int
    piece: str | list[int]


class Rendered(msgspec.Struct, frozen=True):
    """The body of /v1/chat/render, with pieces."""

    prompt: str
    count: int
    tokens: list[Token]
    warnings: list[str] = []


@click.command(short_help="Show the prompt that a chat comes to.")
@click.argument("model")
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option("--json", "as_json", is_flag=True, help="For programs: the body of /v1/chat/render.")
@url_option
def render(url: str, model: str, file: TextIO, as_json: bool) -> None:
    """Show the prompt that the chat in FILE comes to for MODEL, and its tokens.

    FILE holds the JSON of a chat request, or of its messages alone; `-` reads it from stdin. Every
    line after the prompt is one token: its place, its id and its text. A neuron's URL does as well
    as the gateway's.
    """
    request = _request(file) | {"model": absolute(model)}
    raw = asyncio.run(_fetch(url, request, tokens="true" if as_json else "pieces"))
    if as_json:
        emit_json(msgspec.json.format(raw, indent=2))
        return
    try:
        rendered = msgspec.json.decode(raw, type=Rendered)
    except msgspec.DecodeError as error:
        raise Failure(f"{url} does not render like a cortex of this version: {error}") from None
    for line in lines(rendered):
        click.echo(line)
    for warning in rendered.warnings:
        note(f"warning: {warning}")
    note(f"{rendered.count} tokens")


def lines(rendered: Rendered) -> list[str]:
    """The prompt, an empty line, and a line for each token."""
    tokens = [
        f"{place:>6} {token.id:>8}  {_shown(token.piece)}"
        for place, token in enumerate(rendered.tokens)
    ]
    return [plain(rendered.prompt), "", *tokens]


def _request(file: TextIO) -> dict[str, Any]:
    """Raises UsageError for what is no request."""
    try:
        given = json.load(file)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{file.name} is not valid JSON: {error}") from None
    if isinstance(given, list):
        return {"messages": given}
    if not isinstance(given, dict):
        raise click.UsageError(f"{file.name} holds neither a chat request nor a list of messages")
    return given


async def _fetch(url: str, request: dict[str, Any], tokens: str) -> bytes:
    async with Gateway(url) as gateway:
        return await gateway.render(request, tokens)


def _shown(piece: str | list[int]) -> str:
    """Quoted, so that spaces and newlines are seen; bytes as they are written in hexadecimal."""
    if isinstance(piece, str):
        return plain(json.dumps(piece, ensure_ascii=False))
    return "bytes " + bytes(piece).hex(" ")

"""`cortex load` and `cortex unload`: start the operation, then show how far it is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, get_args

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from cortex_cli.failure import Failure
from cortex_cli.gateway import Gateway, Placed, url_option
from cortex_cli.terminal import console, err_console, note, plain
from cortex_cli.units import count, duration, size
from cortex_core.config.loading import Kv
from cortex_core.envelopes.admin import OperatorOrder
from cortex_core.errors import CortexError
from cortex_core.fleet.discovery import ModelState
from cortex_core.wire.ipc import KvType

__all__ = ["absolute", "here", "load", "unload"]

_POLL_S = 0.1


@click.command(short_help="Load a model.")
@click.argument("model")
@click.option("--node", help="The neuron to load it on. [default: where it fits best]")
@click.option("--device", help="The device of that node, e.g. cuda:0 or cpu.")
@click.option("--context", type=click.IntRange(min=0), help="Tokens per sequence; 0: what fits.")
@click.option("--parallel", type=click.IntRange(min=1), help="Sequences that decode at once.")
@click.option(
    "--kv-type",
    type=click.Choice(get_args(KvType)),
    help="How keys and values are stored; q8_0 takes half of f16, q4_0 a quarter.",
)
@click.option(
    "--kv",
    type=click.Choice(get_args(Kv)),
    help="One pool of KV cells for all sequences, or a part for each.",
)
@click.option("--cells", type=click.IntRange(min=0), help="Tokens the whole KV cache holds.")
@click.option("--gpu-layers", type=click.IntRange(min=-1), help="Layers on the GPU; -1: all.")
@url_option
def load(url: str, model: str, **options: Any) -> None:
    """Load MODEL: an id, or the path of a GGUF file on the neuron's host."""
    request = {"model": absolute(model), **_given(options)}
    took_s, done = asyncio.run(_carry_out(url, "load", request))
    console().print(plain(f"loaded {_described(done)} in {duration(took_s)}"))


@click.command(short_help="Unload a model.")
@click.argument("model")
@click.option("--node", help="The neuron to unload it from; needed where several hold it.")
@url_option
def unload(url: str, model: str, node: str | None) -> None:
    """Unload MODEL; running requests finish first."""
    request = {"model": absolute(model), **_given({"node": node})}
    took_s, done = asyncio.run(_carry_out(url, "unload", request))
    console().print(plain(f"unloaded {done.model} from {done.node} in {duration(took_s)}"))


def absolute(model: str) -> str:
    """A path that says so (`./`, `../`, `~/`) made absolute: the neuron runs in another folder.

    Anything else is left alone: `org/name` looks like a path too.
    """
    if model.startswith(("./", "../", "~/")):
        return str(Path(model).expanduser().resolve())
    return model


def here(model: str) -> str:
    """For a neuron started from this very folder: any path to a file that exists, made absolute."""
    return str(Path(model).resolve()) if Path(model).is_file() else absolute(model)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _described(done: OperatorOrder) -> str:
    model = done.result
    if model is None:
        return f"{done.model} on {done.node}"
    return f"{model.id} on {done.node} ({_facts(model)})"


def _facts(model: ModelState) -> str:
    return (
        f"{model.device}: {size(model.memory_bytes)}, "
        f"{model.parallel} x {count(model.context)} tokens"
        + (f" in {model.kv_type}" if model.kv_type not in ("", "f16") else "")
    )


async def _carry_out(url: str, verb: str, request: dict[str, Any]) -> tuple[float, OperatorOrder]:
    """Seconds it took, and the order that is done. Raises its fault if it failed."""
    began_s = time.monotonic()
    async with Gateway(url) as gateway:
        start = gateway.load if verb == "load" else gateway.unload
        placed = await start(request)
        try:
            ended = await _watched(gateway, placed)
        except asyncio.CancelledError:
            note(f"the {verb} goes on without you; `cortex status` shows how far it is")
            raise
    if ended.phase == "failed":
        if ended.fault is None:
            raise Failure(f"the {verb} of {ended.model} failed on {ended.node}, without a cause")
        raise CortexError.from_fault(ended.fault)
    return time.monotonic() - began_s, ended


async def _watched(gateway: Gateway, placed: Placed) -> OperatorOrder:
    """Polls until the order ends or the gateway fails; shows a bar meanwhile on a terminal."""
    out = err_console()
    bar = Progress(
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        # The one column that gives way: a long name must not push out how far the load is.
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
        console=out,
        transient=True,
        expand=True,
        disable=not out.is_terminal,
    )
    order = placed.order
    if not out.is_terminal:
        note(_title(order))
    with bar:
        task = bar.add_task(plain(_title(order)), total=1.0)
        while order.phase == "running":
            bar.update(task, completed=order.progress, description=plain(_title(order)))
            await asyncio.sleep(_POLL_S)
            order = await gateway.order(placed)
        bar.update(task, completed=1.0)
    return order


def _title(order: OperatorOrder) -> str:
    """The node is not known before one has been chosen."""
    where = f" on {order.node}" if order.node is not None else ""
    return f"{order.kind}ing {order.model}{where}"

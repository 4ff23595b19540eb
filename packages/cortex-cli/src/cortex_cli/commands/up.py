"""`cortex up`: a gateway and one neuron on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
from rich.text import Text

from cortex_cli.commands.load import here
from cortex_cli.failure import Failure
from cortex_cli.gateway import DEFAULT_URL
from cortex_cli.stack import EMBEDDED, Plan, Stack
from cortex_cli.steps import Steps
from cortex_cli.terminal import console, plain

__all__ = ["up"]

# A large file from a slow disk; whoever waits sees the progress and may leave.
_LOAD_S = 3600.0


@click.command(short_help="Start a gateway and one neuron here.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=31313,
    show_default=True,
    help="The gateway's; 0 takes any free one. Metrics are on the next.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The gateway's address; 0.0.0.0 lets other machines in.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="PATH|ID",
    help=f"What to load; may be given again. [default: {EMBEDDED}]",
)
@click.option(
    "--models-dir",
    "folders",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="A folder whose GGUF files `cortex load` may load; may be given again.",
)
@click.option(
    "--cpu-workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="CPU devices to offer, each with a worker process of its own.",
)
def up(
    port: int,
    host: str,
    models: tuple[str, ...],
    folders: tuple[str, ...],
    cpu_workers: int | None,
) -> None:
    """Start a gateway and one neuron here, load a model, and say how to use it.

    Ctrl-C stops both; running answers finish first, and a second Ctrl-C does not wait for them.
    """
    metrics_port = port + 1 if 0 < port < 65535 else 0
    for wanted in (port, metrics_port):
        _check_free(host, wanted)
    bracketed = f"[{host}]" if ":" in host else host
    plan = Plan(
        folder=_log_folder(port),
        models=list(dict.fromkeys(here(model) for model in models)) or [EMBEDDED],
        listen=f"{bracketed}:{port}",
        metrics_listen=f"{bracketed}:{metrics_port}",
        local=list(folders),
        cpu_workers=cpu_workers,
    )
    asyncio.run(_run(plan))


def _log_folder(port: int) -> Path:
    if port == 0:
        return Path(tempfile.mkdtemp(prefix="cortex-up-"))
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "cortex" / f"up-{port}"


def _check_free(host: str, port: int) -> None:
    """Says so before anything is started; a race is still caught when the gateway binds."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Failure(
            f"cannot listen on {host}:{port}: {reason}; stop what listens there "
            "(`cortex status` tells whether it is cortex), or choose another with --port"
        ) from None


async def _run(plan: Plan) -> None:
    asked = asyncio.Event()
    async with Stack(plan, Steps()) as stack:
        with _signals(asked, stack):
            serving = asyncio.create_task(_serve(stack, plan))
            stopping = asyncio.create_task(asked.wait())
            try:
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    await serving
            finally:
                for task in (serving, stopping):
                    task.cancel()
                await asyncio.gather(serving, stopping, return_exceptions=True)
                if asked.is_set():
                    console().print(Text("\nstopping; running answers finish first", "dim"))
                await stack.stop()
    console().print(Text("stopped", "dim"))


async def _serve(stack: Stack, plan: Plan) -> None:
    """Never returns by itself; raises the Failure of whatever ended."""
    await stack.start()
    ids = await stack.while_alive(stack.models_ready(_LOAD_S))
    _announce(stack, plan, ids[0])
    await stack.while_alive(asyncio.Event().wait())


def _tilde(folder: Path) -> str:
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


@contextmanager
def _signals(asked: asyncio.Event, stack: Stack) -> Iterator[None]:
    """The first signal asks to stop, the next one ends the patience."""

    def on_signal() -> None:
        if asked.is_set():
            stack.kill()
        asked.set()

    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _announce(stack: Stack, plan: Plan, model: str) -> None:
    out = console()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = msgspec.json.encode({"model": model, "messages": question}).decode()
    at = "" if stack.url == DEFAULT_URL else f" --url {stack.url}"
    out.print(Text.assemble("\ncortex is up: ", (stack.url, "bold green"), "\n"))
    curl = f"curl {stack.url}/v1/chat/completions -d {shlex.quote(body)}"
    out.print(Text(f"{curl}\n"), soft_wrap=True)
    rows = (
        (f"cortex chat{at}", "talk to it"),
        (f"cortex status{at}", "what runs where"),
        (stack.metrics_url, "metrics"),
        (_tilde(plan.folder), "logs"),
    )
    width = max(len(left) for left, _ in rows)
    for left, right in rows:
        out.print(Text.assemble(f"{plain(left):<{width}}  ", (right, "dim")), soft_wrap=True)
    out.print(Text("\nCtrl-C stops both.", "dim"))

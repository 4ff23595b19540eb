"""`cortex chat`: a conversation in the terminal, or one question in a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from rich.text import Text

from cortex_cli.answer import Answer, Part
from cortex_cli.failure import Failure
from cortex_cli.gateway import Gateway, url_option
from cortex_cli.terminal import complain, console, err_console, note, plain
from cortex_core.errors import CortexError

__all__ = ["chat"]


@click.command(short_help="Talk to a model.")
@click.argument("message", required=False)
@click.option("-m", "--model", help="[default: the first that is ready]")
@click.option("-s", "--system", help="A system message.")
@click.option("--no-think", is_flag=True, help="Ask the model to answer without reasoning first.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="[default: the model's]")
@url_option
def chat(
    url: str,
    message: str | None,
    model: str | None,
    system: str | None,
    no_think: bool,
    temperature: float | None,
) -> None:
    """Talk to a model; with MESSAGE (or a piped one), ask once.

    Reasoning is dimmed. Ctrl-C stops an answer, Ctrl-D leaves. Into a pipe goes the answer alone;
    reasoning and timing go to stderr.
    """
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read().strip()
        if not message:
            raise click.UsageError("nothing to ask: MESSAGE is missing and stdin is empty")
    with asyncio.Runner() as runner:
        conversation = _Conversation(url, model or runner.run(_first_ready(url)), system)
        if no_think:
            conversation.options["chat_template_kwargs"] = {"enable_thinking": False}
        if temperature is not None:
            conversation.options["temperature"] = temperature
        if message is not None:
            runner.run(conversation.ask(message))
        else:
            _talk(conversation, runner)


async def _first_ready(url: str) -> str:
    async with Gateway(url) as gateway:
        listed = await gateway.models()
    for entry in listed.data:
        if any(location.state == "ready" for location in entry.locations):
            return entry.id
    raise Failure("no model is ready; load one with `cortex load MODEL` (`cortex models` lists)")


def _talk(conversation: _Conversation, runner: asyncio.Runner) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives input() line editing and history
    note(f"{conversation.model} at {conversation.url}. Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            message = input("\n> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D leaves)", nl=False)
            continue
        if not message:
            continue
        try:
            runner.run(conversation.ask(message))
        except KeyboardInterrupt:
            note("(stopped)")
        except CortexError as error:
            complain(error.message, code=error.code)
        except Failure as error:
            complain(error.message, details=error.details)


class _Conversation:
    """What has been said, and with which model and options."""

    def __init__(self, url: str, model: str, system: str | None) -> None:
        self.url = url
        self.model = model
        self.options: dict[str, Any] = {}
        self._messages: list[dict[str, Any]] = []
        if system:
            self._messages.append({"role": "system", "content": system})

    async def ask(self, message: str) -> None:
        """One turn, shown as it arrives. A turn that yields no answer leaves no trace in the
        conversation; one that was stopped or broke off keeps what had arrived."""
        question = {"role": "user", "content": message}
        request = {
            "model": self.model,
            "messages": [*self._messages, question],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        answer = Answer(time.monotonic())
        page = _Page()
        try:
            async with (
                Gateway(self.url) as gateway,
                gateway.chat_stream(request) as chunks,
            ):
                async for chunk in chunks:
                    for part in answer.feed(chunk, time.monotonic()):
                        page.show(part)
                answer.end()
        finally:
            page.close()
            if answer.content:
                self._messages += [question, answer.message()]
        page.remark(answer.summary())


class _Page:
    """Where an answer is written: in colour on a terminal, else the answer alone on stdout."""

    def __init__(self) -> None:
        out = console()
        self._aside = out if out.is_terminal else err_console()
        self._writes: dict[str, Callable[[str], None]] = {
            "reasoning": lambda text: self._aside.print(
                Text(text, "dim italic"), end="", soft_wrap=True
            ),
            "content": lambda text: out.print(Text(text), end="", soft_wrap=True),
        }
        self._kind: str | None = None
        self._tail = ""

    def show(self, part: Part) -> None:
        text = plain(part.text)
        if part.kind != self._kind:
            # Templates put newlines around a reasoning block; here the change of style does.
            text = text.lstrip("\n")
            if not text:
                return
            self.close()
            self._kind = part.kind
        self._writes[part.kind](text)
        self._tail = text

    def close(self) -> None:
        """Ends the line of what was written last."""
        if self._kind is not None and not self._tail.endswith("\n"):
            self._writes[self._kind]("\n")
        self._kind = None

    def remark(self, text: str) -> None:
        if text:
            self._aside.print(Text(text, "dim"), soft_wrap=True)

"""`cortex demo`: the whole way once, on free ports, with every answer checked.

Client, gateway, neuron, worker process and llama.cpp are the real ones, and so is the model.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.text import Text

from cortex_cli.answer import Answer
from cortex_cli.commands.load import here
from cortex_cli.failure import Failure
from cortex_cli.gateway import Gateway
from cortex_cli.stack import EMBEDDED, Plan, Stack
from cortex_cli.steps import Steps
from cortex_cli.terminal import console, err_console, plain
from cortex_cli.units import duration
from cortex_core.envelopes.openai_chat import ChatCompletion, ToolCall

__all__ = ["demo"]

_CAPITAL = "What is the capital of France?"
_CITY = "Bergen"
_WEATHER = f"What is the weather in {_CITY}?"
_REPORT = {"temperature_c": 17, "sky": "sunny"}
_GET_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
_READY_S = 120.0
_MOST_TOKENS = 300  # a model that never stops must not hold up the verdict


@click.command(hidden=True)
@click.option("--model", default=EMBEDDED, metavar="PATH|ID", help="Another model to examine.")
def demo(model: str) -> None:
    """Start everything on free ports, ask, check the answers, stop everything."""
    began_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="cortex-demo-"))
    keeps_logs = False
    try:
        asyncio.run(_run(folder, here(model)))
    except Exception:
        keeps_logs = True
        err_console().print(Text(f"the logs are in {folder}", "dim"), soft_wrap=True)
        raise
    finally:
        if not keeps_logs:
            shutil.rmtree(folder, ignore_errors=True)
    console().print(f"All right, in {duration(time.monotonic() - began_s)}.")


async def _run(folder: Path, model: str) -> None:
    out = console()
    async with Stack(Plan(folder=folder, models=[model]), Steps()) as stack:
        await stack.start()
        (model,) = await stack.while_alive(stack.models_ready(_READY_S))
        async with Gateway(stack.url) as gateway:
            exchanges = _Exchanges(gateway, model, out)
            await stack.while_alive(exchanges.run())
        if exchanges.wrong:
            raise Failure("not every answer was right:", exchanges.wrong)


class _Exchanges:
    """The conversations of the demo. `wrong` collects what was not as it should be."""

    def __init__(self, gateway: Gateway, model: str, out: Console) -> None:
        self.wrong: list[str] = []
        self._gateway = gateway
        self._model = model
        self._out = out

    async def run(self) -> None:
        await self._streamed()
        await self._whole()
        await self._tool()

    async def _streamed(self) -> None:
        self._title("streamed")
        self._line("you", _CAPITAL)
        answer = await self._ask_streamed([_user(_CAPITAL)])
        self._said(answer.reasoning, answer.content)
        self._check("the streamed answer", '"Paris"', answer.content, lambda it: "Paris" in it)
        self._line("", answer.summary(), "dim")

    async def _whole(self) -> None:
        self._title("not streamed, without thinking")
        self._line("you", _CAPITAL)
        message = await self._ask(
            [_user(_CAPITAL)], chat_template_kwargs={"enable_thinking": False}
        )
        self._said(message.reasoning_content, message.content)
        content = message.content or ""
        self._check("the whole answer", '"Paris"', content, lambda it: "Paris" in it)

    async def _tool(self) -> None:
        self._title("a tool call, and an answer from the tool's result")
        self._line("you", f"{_WEATHER}  (offered: get_weather)")
        messages: list[dict[str, Any]] = [_user(_WEATHER)]
        asked = await self._ask_streamed(messages, tools=[_GET_WEATHER])
        self._said(asked.reasoning, asked.content)
        calls = [msgspec.convert(call, ToolCall) for call in asked.tool_calls]
        shown = ", ".join(f"{call.function.name}({call.function.arguments})" for call in calls)
        self._line(self._model, shown, "bold")
        if not self._check(
            "the tool call", f"get_weather for {_CITY}", shown, lambda _: _is_right(calls)
        ):
            return
        result = json.dumps(_REPORT)
        self._line("tool", result)
        messages += [
            asked.message(),
            {"role": "tool", "tool_call_id": calls[0].id, "content": result},
        ]
        message = await self._ask(messages, tools=[_GET_WEATHER])
        self._said(message.reasoning_content, message.content)
        facts = [str(fact) for fact in _REPORT.values()]
        self._check(
            "the answer from the tool's result",
            " and ".join(f'"{fact}"' for fact in facts),
            message.content or "",
            lambda it: all(fact in it for fact in facts),
        )

    async def _ask_streamed(self, messages: list[dict[str, Any]], **options: Any) -> Answer:
        request = self._request(messages, stream=True, **options)
        request["stream_options"] = {"include_usage": True}
        answer = Answer(time.monotonic())
        async with self._gateway.chat_stream(request) as chunks:
            async for chunk in chunks:
                answer.feed(chunk, time.monotonic())
        answer.end()
        return answer

    async def _ask(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        body = await self._gateway.chat(self._request(messages, **options))
        return msgspec.json.decode(body, type=ChatCompletion).choices[0].message

    def _request(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": _MOST_TOKENS,
            **options,
        }

    def _check(self, what: str, expected: str, got: str, is_right: Callable[[str], bool]) -> bool:
        if is_right(got):
            self._line("", f"right: {expected}", "green")
            return True
        self._line("", f"wrong: expected {expected}", "bold red")
        self.wrong.append(f"{what}: expected {expected}, got {got!r}")
        return False

    def _title(self, text: str) -> None:
        self._out.print(Text(f"\n{text}", "bold"))

    def _said(self, reasoning: object, content: str | None) -> None:
        if isinstance(reasoning, str) and reasoning.strip():
            self._line("thinking", reasoning.strip(), "dim italic")
        if content and content.strip():
            self._line(self._model, content.strip(), "bold")

    def _line(self, who: str, text: str, style: str = "") -> None:
        if text:
            line = Text.assemble((f"  {who:<12} ", "cyan"), (plain(text), style))
            self._out.print(line, soft_wrap=True)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _is_right(calls: list[ToolCall]) -> bool:
    if [call.function.name for call in calls] != ["get_weather"]:
        return False
    try:
        return json.loads(calls[0].function.arguments) == {"city": _CITY}
    except json.JSONDecodeError:
        return False

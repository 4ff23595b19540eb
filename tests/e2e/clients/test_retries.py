"""Both vendors' SDKs come back by themselves when they are told that it is too much just now.

The neuron runs one sequence and lets two more wait, not for long: who comes fourth gets a 429, who
waits in vain a 503, both with a Retry-After.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.client import TINY, ask, eventually, fetch, open_stream, user
from tests.e2e.conftest import Stack, gateway_config
from tests.processes import start_gateway, start_neuron

CONFIG = "[engine]\nparallel = 1\nmax_waiting = 2\nmax_wait_s = 3\n"


@pytest.fixture(scope="module")
def narrow() -> Iterator[Stack]:
    with (
        start_neuron(config=CONFIG) as neuron,
        start_gateway(gateway_config(neuron.url)) as gateway,
    ):
        stack = Stack(gateway, neuron)
        asyncio.run(eventually(stack.is_servable, "cortex/tiny is servable"))
        yield stack


class Desk:
    """A client of either vendor: `ask` for an answer; `statuses` of all it was answered, and
    `refused` once that was a refusal."""

    def __init__(self, stack: Stack, vendor: str, max_retries: int) -> None:
        self.statuses: list[int] = []
        self.refused = asyncio.Event()
        hooks: Any = {"response": [self._answered]}
        if vendor == "anthropic":
            self._client: Any = anthropic.AsyncAnthropic(
                base_url=stack.url,
                api_key="unused",
                max_retries=max_retries,
                http_client=anthropic.DefaultAsyncHttpxClient(event_hooks=hooks),
            )
        else:
            self._client = openai.AsyncOpenAI(
                base_url=f"{stack.url}/v1",
                api_key="unused",
                max_retries=max_retries,
                http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks),
            )

    async def _answered(self, response: Any) -> None:
        self.statuses.append(response.status_code)
        if response.status_code != 200:
            assert int(response.headers["retry-after"]) > 0
            self.refused.set()

    async def ask(self) -> str:
        if isinstance(self._client, anthropic.AsyncAnthropic):
            message: Any = await self._client.messages.create(
                model=TINY, max_tokens=50, messages=[{"role": "user", "content": "ping"}]
            )
            return message.content[0].text
        answer = await self._client.chat.completions.create(model=TINY, messages=user("ping"))
        return answer.choices[0].message.content


@asynccontextmanager
async def busy(stack: Stack) -> AsyncIterator[None]:
    """The neuron's one seat is taken."""
    async with open_stream(stack.url, "Hello!", ignore_eos=True, max_tokens=8000) as holder:
        await holder.read(lambda chat: len(chat.deltas) >= 3)
        yield


@asynccontextmanager
async def full(stack: Stack) -> AsyncIterator[None]:
    """So are the places in its queue."""
    async with busy(stack), asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(ask(stack.url, "ping"))

        async def is_full() -> bool:
            models = (await fetch("GET", f"{stack.neuron.url}/models")).body["models"]
            return models[0].get("waiting", 0) == 2

        await eventually(is_full, "two requests wait")
        yield


@pytest.mark.parametrize(("state", "status"), [(full, 429), (busy, 503)])
async def test_a_refusal_is_mended_by_the_sdks_own_retry(narrow: Stack, state: Any, status: int):
    desks = [Desk(narrow, vendor, max_retries=5) for vendor in ("anthropic", "openai")]
    async with asyncio.TaskGroup() as tasks, state(narrow):
        asked = [tasks.create_task(desk.ask()) for desk in desks]
        for desk in desks:
            await desk.refused.wait()
    assert all(task.result() for task in asked)
    for desk in desks:
        assert (desk.statuses[0], desk.statuses[-1]) == (status, 200)


async def refusals(narrow: Stack, state: Any) -> tuple[Any, Any]:
    """What both SDKs raise in that state."""
    desks = [Desk(narrow, vendor, max_retries=0) for vendor in ("anthropic", "openai")]
    async with state(narrow):
        by_anthropic, by_openai = await asyncio.gather(
            *(d.ask() for d in desks), return_exceptions=True
        )
    return by_anthropic, by_openai


async def test_a_full_queue_is_a_rate_limit_in_both_sdks(narrow: Stack):
    by_anthropic, by_openai = await refusals(narrow, full)
    assert isinstance(by_anthropic, anthropic.RateLimitError)
    assert isinstance(by_openai, openai.RateLimitError)
    assert by_anthropic.type == "rate_limit_error"
    assert by_anthropic.error_code == by_openai.code == "rate_limit_exceeded"


async def test_a_long_wait_is_an_overload_in_both_sdks(narrow: Stack):
    by_anthropic, by_openai = await refusals(narrow, busy)
    assert isinstance(by_anthropic, anthropic.InternalServerError)
    assert isinstance(by_openai, openai.InternalServerError)
    assert by_anthropic.type == "overloaded_error"
    assert by_anthropic.error_code == by_openai.code == "no_capacity"

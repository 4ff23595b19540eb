"""The render route shows what a chat would be told, and refuses what a chat is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cortex_core.config.neuron import NeuronConfig
from cortex_core.errors import Fault
from cortex_core.outcome import Outcome
from cortex_core.wire import ipc
from neuron.routes.chat import ChatEndpoint
from neuron.routes.render import RenderEndpoint
from tests.unit.chat.played import Exchanged, ask, info
from tests.unit.neuron.told import ToldRegistry

CONTINUED = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "So "},
]
TOOLS = [{"type": "function", "function": {"name": "add"}}]


class Asked:
    """An exchange under way."""

    def __init__(
        self, body: dict[str, Any], query: str = "", known: ipc.ModelInfo | None = None
    ) -> None:
        self.registry = ToldRegistry()
        self.registry.known = known or info()
        self.outcomes: list[Outcome] = []
        endpoint = RenderEndpoint(self.registry, NeuronConfig(), self.outcomes.append)
        self.exchanged = Exchanged(
            self.registry,  # pyright: ignore
            body,
            endpoint=endpoint,
            query=query,
        )
        self._task = asyncio.create_task(self.exchanged.run())

    async def question(self) -> ipc.Tokenize:
        (asked,) = await self.registry.asked()
        assert isinstance(asked, ipc.Tokenize)
        return asked

    async def replied(self, pieces: dict[int, bytes] | None = None) -> Exchanged:
        tokens = ipc.Tokens(ipc.pack_ids([4, 5]), pieces)
        self.registry.reply(await self.question(), tokens)
        return await self.done()

    async def done(self) -> Exchanged:
        return await asyncio.wait_for(self._task, 10)


async def test_prompt_and_tokens_are_shown():
    asked = Asked(ask(tools=TOOLS, temperature=0, stream=True, n=2))
    question = await asked.question()
    assert (question.ends, question.parse_special, question.with_pieces) == ("prompt", True, False)
    got = await asked.replied()
    assert got.json == {"prompt": question.text, "count": 2, "tokens": [4, 5]}
    assert question.text.startswith("<tools>")
    assert [outcome.kind for outcome in asked.outcomes] == ["ok"]


async def test_a_message_to_be_continued_ends_the_prompt():
    asked = Asked(ask() | {"messages": CONTINUED, "continue_final_message": True})
    assert (await asked.question()).text == "<user>hi<assistant>So "


async def test_tokens_are_only_counted_where_that_is_enough():
    assert (await Asked(ask(), "tokens=false").replied()).json == {"count": 2}


async def test_tokens_come_with_their_pieces():
    asked = Asked(ask(), "tokens=pieces")
    assert (await asked.question()).with_pieces
    got = await asked.replied({4: b"h", 5: b"\xf0\x9f"})
    assert got.json["tokens"] == [{"id": 4, "piece": "h"}, {"id": 5, "piece": [0xF0, 0x9F]}]


async def test_what_was_done_to_render_at_all_is_told():
    asked = Asked(ask(), known=info("{{ raise_exception('never') }}"))
    got = await asked.replied()
    assert got.json["prompt"].startswith("<|im_start|>user\nhi")
    (warning,) = got.json["warnings"]
    assert "ChatML" in warning
    assert "never" in warning


async def test_what_the_template_never_looks_at_is_listed():
    asked = Asked(ask(user="u", add_generation_prompt=True))
    got = await asked.replied()
    assert got.headers["x-cortex-ignored"] == "user, add_generation_prompt"


async def test_what_is_about_an_answer_is_listed_once():
    got = await Asked(ask(temperature=0, max_thinking_tokens=5, tool_choice="none")).replied()
    assert got.headers["x-cortex-ignored"] == "max_thinking_tokens, temperature, tool_choice"


@pytest.mark.parametrize(
    ("body", "known"),
    [
        (b"{", None),
        (ask(frobnicate=1), None),
        (ask() | {"model": "other"}, None),
        (ask(temperature=-1), None),
        (ask(tools=TOOLS), info("{{ tools }}{{ raise_exception('no') }}")),
        (ask(tools=TOOLS, tool_choice="required"), info("{{ tools }}")),
        (ask(), info(kind="embed")),
        (ask(continue_final_message=True), None),
    ],
)
async def test_what_a_chat_is_refused_is_refused_alike(body: Any, known: ipc.ModelInfo | None):
    answers: list[tuple[int, Any]] = []
    for kind in (ChatEndpoint, RenderEndpoint):
        registry = ToldRegistry()
        registry.known = known or info()
        endpoint = kind(registry, NeuronConfig())
        got = await Exchanged(registry, body, endpoint=endpoint).run()  # pyright: ignore
        answers.append((got.status, got.json))
        assert registry.sent == []
    assert answers[0] == answers[1]
    assert answers[0][0] >= 400


async def test_a_wish_for_tokens_that_is_none_is_refused_by_name():
    got = await Asked(ask(), "tokens=maybe").done()
    assert (got.status, got.json["error"]["param"]) == (400, "tokens")


async def test_a_fault_of_the_worker_is_the_clients_answer():
    asked = Asked(ask())
    asked.registry.fail(await asked.question(), Fault("upstream_failed", "the worker died"))
    assert (await asked.done()).status == 502
    assert [outcome.kind for outcome in asked.outcomes] == ["upstream_failed"]


async def test_a_client_who_leaves_withdraws_the_question():
    asked = Asked(ask())
    question = await asked.question()
    asked.exchanged.leave.set()
    await asked.done()
    assert asked.registry.cancelled == [question.request]

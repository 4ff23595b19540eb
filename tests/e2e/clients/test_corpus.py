"""Every body of tests/corpus is accepted: those that libraries sent, and those of coding agents,
each of which says which `program` it is of."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from tests.e2e.client import fetch
from tests.e2e.conftest import Stack

CORPUS = Path(__file__).parents[2] / "corpus"


class Request(NamedTuple):
    """What a client sent; `source` and `name` say which, and where it is written down."""

    source: str
    name: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.source}: {self.name}"


def _requests() -> Iterator[Request]:
    for file in sorted(CORPUS.glob("*.jsonl")):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            entry = json.loads(line)
            yield Request(file.stem, f"{number} {entry.pop('name')}", **entry)
    for file in sorted((CORPUS / "agents").glob("*.json")):
        entry = json.loads(file.read_text("utf-8"))
        assert entry.pop("program"), file
        yield Request("agents", file.stem, **entry)


REQUESTS = list(_requests())
AGENTS = {request.name: request for request in REQUESTS if request.source == "agents"}


def test_the_corpus_is_there():
    sources = {request.source for request in REQUESTS}
    assert sources == {"agents", "anthropic_sdk", "frameworks", "litellm", "openai_sdk"}


def test_no_secret_is_in_the_corpus():
    for request in REQUESTS:
        names = {name.lower() for name in request.headers}
        assert not names & {"authorization", "x-api-key", "cookie", "user-agent"}
        text = json.dumps(request._asdict())
        assert not re.search(r"sk-[a-zA-Z0-9]|127\.0\.0\.1|/root/|/tmp|/Users", text)


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
async def test_it_is_accepted(stack: Stack, request_: Request):
    """A stream is read until its answer has begun, which is when a refusal would be told."""
    url = stack.url + request_.path
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=request_.body, headers=request_.headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        if answer.content_type == "application/json":
            assert "error" not in (value := await answer.json()) or value["error"] is None
            return
        async for line in answer.content:
            assert b'"error"' not in line or b'"error":null' in line
            if b"delta" in line:
                return
        raise AssertionError("the stream ended before there was an answer")


async def test_an_agents_next_turn_reuses_the_prompt_whatever_its_attribution(stack: Stack):
    first = AGENTS["claude_code_turn"]
    body = copy.deepcopy(first.body) | {"stream": False, "max_tokens": 30}
    body["thinking"] = {"type": "enabled", "budget_tokens": 10}
    assert (await fetch("POST", stack.url + first.path, body)).status == 200

    line = body["system"][0]["text"]
    body["system"][0]["text"] = line.replace(".73f;", ".01b;")
    assert body["system"][0]["text"] != line
    retry = {"file_path": "/home/dev/shop/cart.py"}
    body["messages"] += [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_02", "name": "Read", "input": retry}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_02", "content": "as before"}],
        },
    ]
    second = await fetch("POST", stack.url + first.path, body)
    assert second.status == 200
    found = re.search(r"reused=(\d+).*computed=(\d+)", second.headers["x-cortex-cache"])
    assert found, second.headers["x-cortex-cache"]
    reused, computed = int(found[1]), int(found[2])
    assert reused > 0.9 * (reused + computed)

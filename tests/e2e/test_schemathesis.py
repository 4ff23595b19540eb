"""Requests made up from our own OpenAPI document, right ones and wrong ones: no answer is a
failure of the servers, each is what the document says, and none fails to come."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
import schemathesis.checks
import schemathesis.openapi
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
)

from cortex_gateway.dialects import DIALECTS
from cortex_gateway.openapi import OPERATIONS
from cortex_gateway.routes import ROUTES
from tests.e2e.client import TINY, eventually, fetch
from tests.e2e.conftest import Stack, gateway_config
from tests.processes import start_gateway, start_neuron

CASES = int(os.environ.get("API_CASES", "240"))  # `make bench` plays 2,000
WITHIN_S = 60
# An answer ends soon, whatever was asked for.
ENGINE = "[engine]\nparallel = 8\ncontext = 512\n"

WITH_BODY = [f"{method} {path}" for (method, path), of in OPERATIONS.items() if of.takes]
WITHOUT = [f"{method} {path}" for (method, path), of in OPERATIONS.items() if not of.takes]


_CHOICES = {"type": "integer", "minimum": 1, "maximum": 3}
_SCHEMA = {"enum": [{"type": "object"}, {"type": "integer"}]}
_NAME = {"enum": ["add", "look-up"]}
NARROWED: dict[str, dict[str, Any]] = {
    "ChatRequest": {"n": _CHOICES, "grammar": {"type": "null"}, "regex": {"type": "null"}},
    "ChoiceOfOne": {"name": _NAME},
    "ChosenTool": {"name": _NAME},
    "CompletionRequest": {"n": _CHOICES, "best_of": {"type": "null"}},
    "CustomTool": {"name": _NAME},
    "FunctionTool": {"name": _NAME, "parameters": _SCHEMA},
    "JsonFormat": {"schema": _SCHEMA},
    "MessagesTool": {"name": _NAME, "input_schema": _SCHEMA},
    "ResponsesRequest": {"previous_response_id": {"type": "null"}},
    "SchemaFormat": {"schema": _SCHEMA},
}
"""By schema, what no document could say: names of what there is, and schemas within a request. And
an answer has few choices."""
REQUIRED = {"ResponsesRequest": ["input"]}
"""By schema, what is required but for requests that name a response which there is none of."""


SHARES = {
    "POST /v1/chat/completions": 0.5,
    "POST /v1/chat/render": 0.5,
    "POST /v1/messages": 0.5,
    "POST /v1/messages/count_tokens": 0.5,
    "POST /v1/responses": 0.5,
}
"""How many of the requests that the document calls right are answered at least. The rest are too
long, contradict themselves, or ask for the impossible in ways that no schema has words for."""
MANY = 50


@dataclass
class Played:
    """How often each status came, of requests that are right and of those that are not."""

    right: Counter[int] = field(default_factory=Counter[int])
    wrong: Counter[int] = field(default_factory=Counter[int])

    @property
    def count(self) -> int:
        return self.right.total() + self.wrong.total()


class Served:
    """`schema` is of the document as the gateway serves it, but for what is NARROWED and for the
    model, which there is."""

    def __init__(self, stack: Stack, document: dict[str, Any]) -> None:
        self.stack = stack
        self.document = document
        narrowed = json.loads(json.dumps(document))
        schemas = narrowed["components"]["schemas"]
        for schema in schemas.values():
            if schema.get("additionalProperties") is False and "model" in schema["properties"]:
                schema["properties"]["model"] = {"enum": [TINY]}
        for name, properties in NARROWED.items():
            schemas[name]["properties"] |= properties
        schemas["ItemReference"] = {"not": {}}
        for name, required in REQUIRED.items():
            schemas[name]["required"] += required
        self.schema = schemathesis.openapi.from_dict(narrowed)

    def play(self, label: str, count: int) -> Played:
        """There are fewer than `count` cases where there are no more."""
        operation = self.schema.find_operation_by_label(label)
        assert operation is not None
        modes = schemathesis.GenerationMode
        right_mode = modes.POSITIVE
        right = operation.as_strategy(generation_mode=right_mode)
        strategy = right
        if operation.body or operation.query or operation.path_parameters:
            strategy = right | operation.as_strategy(generation_mode=modes.NEGATIVE)
        played = Played()

        @settings(
            max_examples=count,
            database=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        @given(case=strategy)
        def play_one(case: schemathesis.Case) -> None:
            answer = case.call(base_url=self.stack.url, timeout=WITHIN_S)
            assert case.meta is not None
            statuses = played.right if case.meta.generation.mode == right_mode else played.wrong
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)
            assert answer.headers["x-request-id"]
            case.validate_response(
                answer, checks=[content_type_conformance, response_schema_conformance]
            )

        play_one()
        return played


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with (
        start_neuron(config=ENGINE) as neuron,
        start_gateway(gateway_config(neuron.url)) as gateway,
    ):
        stack = Stack(gateway, neuron)
        asyncio.run(eventually(stack.is_servable, "cortex/tiny is servable"))
        document = asyncio.run(fetch("GET", f"{stack.url}/openapi.json")).body
        yield Served(stack, document)


def test_the_document_holds_every_route_and_no_other(served: Served) -> None:
    held = {re.sub(r":\w+}", "}", getattr(route, "path", "")) for route in ROUTES}
    assert set(served.document["paths"]) == held | set(DIALECTS)


def test_the_document_describes_what_it_speaks_of_and_nothing_else(served: Served) -> None:
    spoken_of = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(served.document))
    assert set(served.document["components"]["schemas"]) == set(spoken_of)


@pytest.mark.parametrize("label", WITH_BODY)
def test_whatever_is_sent_is_answered_as_the_document_says(served: Served, label: str) -> None:
    count = -(-CASES // len(WITH_BODY))
    played = served.play(label, count)
    print(f"{label}: right {dict(played.right)}, wrong {dict(played.wrong)}")
    assert played.count >= count
    answered, asked = played.right[200], played.right.total()
    share = SHARES.get(label, 0)
    # Of a handful, which are much alike, it may be any share but none.
    assert answered >= (share * asked if asked >= MANY else share), played.right


@pytest.mark.parametrize("label", WITHOUT)
def test_whatever_is_asked_is_answered_as_the_document_says(served: Served, label: str) -> None:
    assert served.play(label, 20).count


async def test_nothing_of_it_runs_on_and_nothing_was_a_bug(served: Served) -> None:
    async def is_at_rest() -> bool:
        return await served.stack.running() == 0

    await eventually(is_at_rest, "nothing runs")
    for daemon in (served.stack.gateway, served.stack.neuron):
        assert "Traceback" not in daemon.log
        assert "a bug" not in daemon.log

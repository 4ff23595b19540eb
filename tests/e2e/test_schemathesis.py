"""Requests made up from our own OpenAPI document, right ones and wrong ones: no answer is a
failure of the servers, each is what the document says, and none fails to come."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
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


_TEXT = {"type": "string", "minLength": 1}
_TURN = {
    "type": "object",
    "properties": {"role": {"enum": ["user", "assistant"]}, "content": _TEXT},
    "required": ["role", "content"],
}
_CHOICES = {"type": "integer", "minimum": 0, "maximum": 3}
NARROWED: dict[str, dict[str, Any]] = {
    "ChatRequest": {"n": _CHOICES},
    "CompletionRequest": {"n": _CHOICES, "best_of": _CHOICES},
    "MessagesRequest": {
        "messages": {"type": "array", "minItems": 1, "items": _TURN},
        "tools": {"const": []},
    },
    "ResponsesRequest": {"input": _TEXT, "tools": {"const": []}, "tool_choice": {"const": "auto"}},
}
"""What decoding alone would leave open, by schema, so that enough of the requests are answered; and
not with a hundred choices."""


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
        self.schema = schemathesis.openapi.from_dict(narrowed)

    def play(self, label: str, count: int) -> int:
        """Returns how many cases there were; fewer than `count` where there are no more."""
        operation = self.schema.find_operation_by_label(label)
        assert operation is not None
        modes = schemathesis.GenerationMode
        right = operation.as_strategy(generation_mode=modes.POSITIVE)
        strategy = right
        if operation.body or operation.query or operation.path_parameters:
            strategy = right | operation.as_strategy(generation_mode=modes.NEGATIVE)
        played = 0

        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        @given(case=strategy)
        def play_one(case: schemathesis.Case) -> None:
            nonlocal played
            played += 1
            answer = case.call(base_url=self.stack.url, timeout=WITHIN_S)
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


@pytest.mark.parametrize("label", WITH_BODY)
def test_whatever_is_sent_is_answered_as_the_document_says(served: Served, label: str) -> None:
    count = -(-CASES // len(WITH_BODY))
    assert served.play(label, count) >= count


@pytest.mark.parametrize("label", WITHOUT)
def test_whatever_is_asked_is_answered_as_the_document_says(served: Served, label: str) -> None:
    assert served.play(label, 20)


async def test_nothing_of_it_runs_on_and_nothing_was_a_bug(served: Served) -> None:
    async def is_at_rest() -> bool:
        return await served.stack.running() == 0

    await eventually(is_at_rest, "nothing runs")
    for daemon in (served.stack.gateway, served.stack.neuron):
        assert "Traceback" not in daemon.log
        assert "a bug" not in daemon.log

"""Whatever a model without any sense writes, a finished answer is what its schema says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from jsonschema import FormatChecker
from jsonschema.validators import validator_for

from cortex_core.wire.ipc import Grammar, Sampling
from tests.unit.worker.driven import Driven, Told, driven
from tests.unit.worker.schemas import SCHEMAS

MOST_TOKENS = 160


@pytest.fixture(scope="module")
def random_model(other_gguf: str) -> Iterator[Driven]:
    with driven(other_gguf, parallel=16, context=1024) as engine:
        yield engine


@pytest.fixture(scope="module")
def answers(random_model: Driven) -> dict[str, list[Told]]:
    """Two for each schema. Marks that end something are likelier than the rest, so that most
    answers end."""
    ending = {
        int(random_model.vocabulary.tokenize_bare(mark)[0]): 5.0 for mark in ('"', "}", "]", ",")
    }
    answers: dict[str, list[Told]] = {}
    for name, schema in SCHEMAS.items():
        constraint = Grammar("json_schema", json.dumps(schema), "schema")
        answers[name] = [
            random_model.submit(
                "say",
                Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed,
                         logit_bias=ending),
                max_tokens=MOST_TOKENS,
                constraint=constraint,
                is_raw=True,  # nor does it think, without end
            )
            for seed in (1, 2)
        ]  # fmt: skip
    random_model.run()
    return answers


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_finished_answer_is_what_its_schema_says(
    name: str, answers: dict[str, list[Told]]
) -> None:
    schema = SCHEMAS[name]
    validator = validator_for(schema)(schema, format_checker=FormatChecker())
    told = answers[name]
    assert [one.fault for one in told] == [None, None]
    finished = [one for one in told if one.reason == "stop"]
    assert finished, "the schema is small enough for one of two answers to end"
    for one in finished:
        validator.validate(json.loads(one.text))


def test_an_answer_that_was_cut_off_says_so(random_model: Driven) -> None:
    told = random_model.constrained(
        "json_schema", '{"type": "string", "minLength": 500}', max_tokens=20
    )
    assert told.reason == "length"
    assert told.usage.completion == 20

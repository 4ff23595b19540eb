"""Whatever the format, and however little sense the model has: a call that has to come is read back
as one, and its arguments are what the tool's schema says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema.validators import validator_for

from cortex_core.envelopes.openai_chat import decode_chat_request
from cortex_core.wire.ipc import Calls, Command, Generate, Reader, Sampling, encode
from neuron.chat.call_grammar import constraint_for
from neuron.chat.pieces import CallArguments, CallStarted, Text
from neuron.chat.tool_calls import parser_for
from neuron.worker.grammar import Grammars
from tests.unit.worker.driven import Driven, Told, driven

MOST_TOKENS = 700
TEMPLATES = Path(__file__).parents[1] / "chat" / "templates"
OTHERS = {
    "bracketed": "{{ tools }} [TOOL_CALLS]name[ARGS]{}",
    "with ids": "{{ tools }} [TOOL_CALLS]name[CALL_ID]id[ARGS]{}",
    "section": "{{ tools }} <|tool_calls_section_begin|><|tool_call_begin|>",
    "unfenced": "{{ tools }} <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
    "invoke": '{{ tools }} <ns:tool_call>\n<invoke name="x">\n<parameter name="y">z</parameter>\n'
    "</invoke>\n</ns:tool_call>",
    "pairs, close": "{{ tools }} <tool_call>x<arg_key>y</arg_key><arg_value>z</arg_value>",
}
SHIPPED = ("qwen_coder", "glm", "deepseek", "mistral", "command_r", "phi", "granite", "hermes",
           "llama3")  # fmt: skip
FORMATS = OTHERS | {name: (TEMPLATES / f"{name}.jinja").read_text("utf-8") for name in SHIPPED}

WORD = {"type": "string", "maxLength": 6}
SCHEMAS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "texts": {
        "properties": {
            "free": {"type": "string", "maxLength": 12},
            "long": {"type": "string", "minLength": 3, "maxLength": 5},
            "unit": {"enum": ["celsius", "fahren heit", "a.b*c", "line\nbreak"]},
            "one": {"const": "5"},
        },
        "required": ["free", "long", "unit", "one"],
    },
    "patterns": {
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{2}/[0-9]{3}$|^none$"},
            "in": {"type": "string", "pattern": "[0-9]-", "minLength": 4, "maxLength": 8},
            "begun": {"type": "string", "pattern": "^ab(c|d)", "maxLength": 6},
        },
        "required": ["code", "in", "begun"],
    },
    "plain": {
        "properties": {
            "count": {"type": "integer", "minimum": 3, "maximum": 40},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "sure": {"type": "boolean"},
            "nothing": {"type": "null"},
        },
        "required": ["count", "share", "sure", "nothing"],
    },
    "nested": {
        "properties": {
            "place": {
                "type": "object",
                "properties": {"name": WORD, "at": {"$ref": "#/$defs/pair"}},
                "required": ["name", "at"],
                "additionalProperties": False,
            },
            "tags": {"type": "array", "items": WORD, "minItems": 1, "maxItems": 3},
        },
        "required": ["place", "tags"],
        "$defs": {"pair": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2,
                           "maxItems": 2}},
    },
    "either": {
        "properties": {
            "maybe": {"anyOf": [WORD, {"type": "null"}]},
            "some": {"type": ["integer", "string"], "maxLength": 5},
            "mixed": {"enum": ["auto", 1, None, True]},
            "bounded": {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 9}, WORD]},
            "list": {"anyOf": [{"type": "array", "items": {"enum": [1]}, "maxItems": 2}, WORD]},
            "flag": {"oneOf": [{"type": "boolean"}, {"const": "auto"}]},
            "through": {"allOf": [{"$ref": "#/$defs/word"}], "description": "x"},
        },
        "required": ["maybe", "some", "mixed", "bounded", "list", "flag", "through"],
        "$defs": {"word": WORD},
    },
    "some may be left out": {
        "properties": {"a": WORD, "b": {"type": "integer"}, "c": {"type": "boolean"}},
        "required": ["b"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def random_model(other_gguf: str) -> Iterator[Driven]:
    with driven(other_gguf, parallel=16, context=1024) as engine:
        yield engine


def tool(schema: Mapping[str, Any], name: str = "get_x") -> dict[str, Any]:
    parameters = {"type": "object"} | dict(schema)
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def calls(template: str, tools: list[dict[str, Any]], **more: Any) -> Calls:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": tools} | more
    constraint = constraint_for(decode_chat_request(json.dumps(body).encode())[0], template)
    assert isinstance(constraint, Calls)
    return constraint


def read(template: str, tools: list[dict[str, Any]], text: str) -> tuple[list[Any], str]:
    """Calls, as name and arguments, and the text around them."""
    parser = parser_for(template, tools)
    assert parser is not None
    pieces = parser.feed(text) + parser.finish()
    names = [piece.name for piece in pieces if isinstance(piece, CallStarted)]
    arguments = [""] * len(names)
    for piece in pieces:
        if isinstance(piece, CallArguments):
            arguments[piece.index] += piece.fragment
    text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    return list(zip(names, map(json.loads, arguments), strict=True)), text


def submit(model: Driven, constraint: Calls, seed: int) -> Told:
    """What ends a number, text or JSON is likelier than the rest, so that most answers end."""
    ending = {
        int(model.vocabulary.tokenize_bare(mark)[0]): 5.0 for mark in ('"', "}", "]", "\n", "<")
    }
    sampling = Sampling(
        temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed, logit_bias=ending
    )
    return model.submit("say", sampling, constraint=constraint, max_tokens=MOST_TOKENS, is_raw=True)


@pytest.mark.parametrize("name", FORMATS)
def test_a_required_call_is_read_back_and_fits_its_schema(random_model: Driven, name: str) -> None:
    template = FORMATS[name]
    told: dict[str, Told] = {}
    for number, (title, schema) in enumerate(SCHEMAS.items()):
        one = tool(schema)
        one["function"]["strict"] = bool(number % 2)
        constraint = calls(template, [one], tool_choice="required", parallel_tool_calls=False)
        told[title] = submit(random_model, constraint, seed=number)
    random_model.run()
    for title, answer in told.items():
        one = tool(SCHEMAS[title])
        schema = one["function"]["parameters"]
        assert (answer.fault, answer.reason) == (None, "stop"), title
        (call,), around = read(template, [one], answer.text)
        assert (call[0], around) == ("get_x", ""), answer.text
        validator_for(schema)(schema).validate(call[1])


# pure: what may be written, and what not


SHORT = {
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [tool(SHORT), tool(SHORT, "sub")]
ONE = [("get_x", {"city": "Paris"})]
BOTH = [*ONE, ("sub", {"city": "Rome", "days": 12})]
TOLD_APART = sorted(FORMATS.keys() - {"llama3"})
"""llama3 marks no call, so none can be held to among text."""


def written(constraint: Calls, called: list[tuple[str, dict[str, Any]]]) -> str:
    """Calls, as these forms write them."""
    texts: list[str] = []
    for name, arguments in called:
        form = constraint.forms[name == "sub"]
        text = form.before
        for part in form.parts:
            key = next((key for key in arguments if key in part.before), "")
            if not part.schema and not key:
                text += part.before + "1" * (9 if "{9}" in part.text else 1) + part.after
            elif key:
                text += f"{part.before}{arguments[key]}{part.after}"
        texts.append(text + (json.dumps(arguments) if form.schema else "") + form.after)
    opens, closes = constraint.opens, constraint.closes
    if constraint.is_grouped:
        return opens + constraint.separator.join(texts) + closes
    return constraint.separator.join(opens + text + closes for text in texts)


@cache
def grammars(model: Driven) -> Grammars:
    return Grammars(model.loaded.model)


def takes(model: Driven, constraint: Calls, text: str) -> bool:
    """Whether an answer may be this text and nothing else."""
    guide = grammars(model).compile(constraint)
    size = model.vocabulary.size
    for token in model.vocabulary.tokenize_bare(text).tolist():
        logits = np.zeros(size, np.float32)
        if guide.is_complete:
            return False
        guide.restrict(logits, 0)
        if np.isinf(logits[token]):
            return False
        guide.accept(token)
    logits = np.zeros(size, np.float32)
    if not guide.is_complete:
        guide.restrict(logits, 0)
    return not np.isinf(logits[min(model.vocabulary.end_ids)])


@pytest.mark.parametrize("name", FORMATS)
def test_what_calls_have_to_be_reaches_the_worker_as_it_was_meant(name: str) -> None:
    constraint = calls(FORMATS[name], TOOLS, tool_choice="required")
    sent = Generate(1, "m", "hi", Sampling(), constraint=constraint)
    (got,) = Reader(Command).feed(encode(sent))
    assert got == sent


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_as_required_is_read_as_it_was_meant(
    random_model: Driven, name: str
) -> None:
    several = calls(FORMATS[name], TOOLS, tool_choice="required")
    single = calls(FORMATS[name], TOOLS, tool_choice="required", parallel_tool_calls=False)
    for called in (ONE, BOTH):
        text = written(several, called)
        assert read(FORMATS[name], TOOLS, text) == (called, "")
        assert takes(random_model, several, text), text
        assert takes(random_model, single, text) == (called is ONE)
    assert not takes(random_model, several, "")
    assert not takes(random_model, several, "Of course. " + written(several, ONE))


@pytest.mark.parametrize("name", TOLD_APART)
def test_among_text_too_a_call_is_one_of_the_offered(random_model: Driven, name: str) -> None:
    strict = [tool(SHORT), tool(SHORT, "sub")]
    strict[0]["function"]["strict"] = True
    several = calls(FORMATS[name], strict)
    single = calls(FORMATS[name], strict, parallel_tool_calls=False)
    both = written(several, BOTH)
    for text in ("", "No call.", written(several, ONE), "Well: " + both):
        assert takes(random_model, several, text), text
    assert read(FORMATS[name], TOOLS, "Well: " + both) == (BOTH, "Well:")
    assert takes(random_model, single, written(several, ONE))
    assert not takes(random_model, single, both)
    for right, wrong in (("get_x", "get_y"), ("Rome", "Oslo"), ("days", "years"), ("12", "1.5")):
        assert not takes(random_model, several, both.replace(right, wrong)), wrong


@pytest.mark.parametrize("name", TOLD_APART)
def test_no_call_comes_without_what_opens_it(random_model: Driven, name: str) -> None:
    """Models forget a mark now and then, and what reads them forgives it."""
    constraint = calls(FORMATS[name], TOOLS, parallel_tool_calls=False)
    call = written(constraint, ONE)
    for start in range(1, len(call)):
        if read(FORMATS[name], TOOLS, call[start:])[0]:
            assert not takes(random_model, constraint, call[start:]), call[start:]

"""What clients of another dialect call a chat's parameters."""

from __future__ import annotations

import pytest

from cortex_core.errors import (
    ContextLengthExceeded,
    CortexError,
    InvalidRequest,
    NoCapacity,
    Overrun,
    UnsupportedParameter,
)
from cortex_core.translate.names import Names

NAMES = Names(
    {
        "tools.function": "tools",
        "tools.function.parameters": "tools.input_schema",
        "response_format": "output.format",
        "response_format.json_schema": "output",
        "enable_thinking": "",
    }
)


@pytest.mark.parametrize(
    ("param", "name"),
    [
        ("temperature", "temperature"),
        ("tools", "tools"),
        ("tools[3]", "tools[3]"),
        ("tools[3].function.parameters", "tools[3].input_schema"),
        ("tools[3].function.parameters.properties.a", "tools[3].input_schema.properties.a"),
        ("tools[0].function.strict", "tools[0].strict"),
        ("tools.function.strict", "tools.strict"),
        ("response_format.type", "output.format.type"),
        ("response_format.json_schema.schema", "output.schema"),
        ("response_formats", "response_formats"),
        ("enable_thinking", ""),
        ("messages[2].content[0]", "messages"),
    ],
)
def test_a_path_is_known_by_its_longest_part(param: str, name: str) -> None:
    assert NAMES.of(param) == name


def test_messages_may_have_another_name_too() -> None:
    assert Names({"messages": "input"}).of("messages[2].content") == "input"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("tools[1].function.name: is empty", "tools[1].name: is empty"),
        ("no: tools[1].function.name", "no: tools[1].function.name"),
    ],
)
def test_an_error_is_told_by_that_name(message: str, told: str) -> None:
    error = NAMES.told(UnsupportedParameter(message, param="tools[1].function.name"))
    assert isinstance(error, UnsupportedParameter)
    assert (error.message, error.param) == (told, "tools[1].name")


@pytest.mark.parametrize(
    "error",
    [
        NoCapacity("full", retry_after_s=3),
        InvalidRequest("temperature: too high", param="temperature"),
        InvalidRequest("enable_thinking: no such", param="enable_thinking"),
        ContextLengthExceeded("too long", overrun=Overrun(9, 8)),
    ],
)
def test_any_other_error_is_left_as_it_is(error: CortexError) -> None:
    assert NAMES.told(error) is error


def test_what_an_error_tells_besides_stays() -> None:
    error = ContextLengthExceeded(
        "messages[4]: too long", param="messages[4]", overrun=Overrun(9, 8)
    )
    told = Names({"messages": "input"}).told(error)
    assert isinstance(told, ContextLengthExceeded)
    assert (told.message, told.param, told.overrun) == ("input: too long", "input", Overrun(9, 8))

"""One tree: every error survives the wire and is rendered in each vendor's own words."""

from __future__ import annotations

import msgspec
import pytest

from cortex_core import errors
from cortex_core.errors import CortexError, Fault, Overrun


def _tree(kind: type[CortexError]) -> list[type[CortexError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in _tree(child))]


CONCRETE = [
    kind
    for kind in _tree(CortexError)
    if kind not in (CortexError, errors.RequestError, errors.Unavailable, errors.PreflightFailed)
]


TIMED = [kind for kind in CONCRETE if kind is not errors.ContextLengthExceeded]
TOO_LONG = errors.ContextLengthExceeded(
    "this model's maximum context length is 9 tokens", param="input", overrun=Overrun(12, 8)
)


@pytest.mark.parametrize("kind", TIMED, ids=lambda kind: kind.__name__)
def test_an_error_survives_the_wire(kind: type[CortexError]):
    sent = kind("it broke", param="model", retry_after_s=7)
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(sent.fault), type=Fault)
    received = CortexError.from_fault(wire)
    assert type(received) is kind
    assert (received.message, received.param, received.retry_after_s) == ("it broke", "model", 7)


def test_by_how_much_a_prompt_is_too_long_survives_the_wire_and_http():
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(TOO_LONG.fault), type=Fault)
    body = msgspec.json.encode(errors.render_openai(TOO_LONG))
    for received in (CortexError.from_fault(wire), errors.parse_openai(body, status=400)):
        assert isinstance(received, errors.ContextLengthExceeded)
        assert received.fault == TOO_LONG.fault


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_an_error_survives_http(kind: type[CortexError]):
    sent = kind("it broke", param="model")
    body = msgspec.json.encode(errors.render_openai(sent))
    received = errors.parse_openai(body, status=sent.status, retry_after_s=sent.retry_after_s)
    assert type(received) is kind
    assert received.fault == sent.fault


def test_a_preflight_failure_keeps_its_kind():
    sent = errors.PreflightFailed("no magic", kind="gguf_corrupt", param="path")
    received = CortexError.from_fault(sent.fault)
    assert isinstance(received, errors.PreflightFailed)
    assert (received.code, received.status) == ("gguf_corrupt", 422)


def test_an_unknown_code_becomes_an_upstream_failure_that_names_it():
    received = CortexError.from_fault(Fault("brand_new", "from the future"))
    assert isinstance(received, errors.UpstreamFailed)
    assert "brand_new" in received.message


def test_a_body_that_is_no_envelope_is_quoted():
    received = errors.parse_openai(b"<html>Bad Gateway</html>", status=502)
    assert isinstance(received, errors.UpstreamFailed)
    assert "502" in received.message
    assert "Bad Gateway" in received.message


def test_codes_are_unique():
    codes = [kind.code for kind in CONCRETE]
    assert len(codes) == len(set(codes))


def test_no_client_fault_has_a_server_status():
    for kind in _tree(errors.RequestError):
        assert 400 <= kind.status < 500


@pytest.mark.parametrize(
    ("error", "openai", "anthropic"),
    [
        (errors.InvalidJson("x"), "invalid_request_error", "invalid_request_error"),
        (errors.InvalidApiKey("x"), "authentication_error", "authentication_error"),
        (errors.ModelNotFound("x"), "not_found_error", "not_found_error"),
        (errors.RequestTooLarge("x"), "invalid_request_error", "request_too_large"),
        (errors.RateLimitExceeded("x"), "rate_limit_error", "rate_limit_error"),
        (errors.UpstreamFailed("x"), "server_error", "api_error"),
        (errors.NoCapacity("x"), "service_unavailable_error", "overloaded_error"),
    ],
)
def test_each_vendor_gets_its_own_type_word(error: CortexError, openai: str, anthropic: str):
    assert errors.render_openai(error)["error"]["type"] == openai
    assert errors.render_anthropic(error)["error"]["type"] == anthropic
    assert errors.render_responses(error)["code"] == error.code


def test_what_is_too_long_is_told_in_the_words_that_each_vendors_clients_look_for():
    told = errors.render_openai(TOO_LONG)["error"]
    assert "maximum context length is 9 tokens" in told["message"]
    assert told["overrun"] == {"tokens": 12, "most": 8}
    told = errors.render_anthropic(TOO_LONG)["error"]
    assert told["message"] == "prompt is too long: 12 tokens > 8 maximum"


def test_what_is_too_long_is_told_without_numbers_where_there_are_none():
    error = errors.ContextLengthExceeded("the prompt is too long for this model")
    assert "overrun" not in errors.render_openai(error)["error"]
    told = errors.render_anthropic(error)["error"]["message"]
    assert told == "prompt is too long: the prompt is too long for this model"


def test_the_tree_in_the_docstring_names_every_error():
    for kind in CONCRETE:
        assert f"{kind.__name__} " in (errors.__doc__ or ""), kind

"""Decode a JSON request body so that no parameter is dropped in silence.

A parameter is a field of the request type (honoured), a name in `ignored` (defined to have no
effect here; reported in `x-cortex-ignored`), or it is rejected by name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, get_type_hints

import msgspec

from cortex_core.choices import with_choices
from cortex_core.errors import InvalidJson, InvalidRequest, UnsupportedParameter

__all__ = ["decode_object", "decode_request", "refusing_depth"]

T = TypeVar("T", bound=msgspec.Struct)

# No parameter has numbers further down: `thinking.budget_tokens`, token ids in lists of lists.
_DEEPEST = 3

_AT_PATH = re.compile(r" - at `(?P<path>[^`]*)`$")


@contextmanager
def refusing_depth() -> Iterator[None]:
    """What is done with a body in here may go as deep as it is nested. Raises InvalidJson where
    that is too deep; also a decorator."""
    try:
        yield
    except RecursionError:
        raise InvalidJson("the request body is nested too deeply") from None


def decode_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object, whatever the content type said. Raises InvalidJson or
    InvalidRequest."""
    try:
        with refusing_depth():
            value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the request body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"the request body must be a JSON object, got {_json_type(value)} instead"
        )
    return value


def decode_request(
    body: bytes, kind: type[T], ignored: Collection[str] = ()
) -> tuple[T, list[str]]:
    """The typed request and the sorted names of parameters present but without effect.

    A null counts as absent: SDKs and agents send it for optional parameters. A whole number may be
    written as any: 5.0 is 5.
    Raises InvalidJson, InvalidRequest (with `param`) or UnsupportedParameter (with `param`).
    """
    values = {name: value for name, value in decode_object(body).items() if value is not None}
    known = kind.__struct_encode_fields__
    present: list[str] = []
    for name in values.keys() - set(known):
        if name not in ignored:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UnsupportedParameter(f"unsupported parameter: {name!r}{hint}", param=name)
        present.append(name)
    try:
        return _converted(values, kind), sorted(present)
    except msgspec.ValidationError as error:
        message, param = _locate(str(error))
        hint = get_type_hints(kind).get(param or "")
        raise InvalidRequest(with_choices(message, hint), param=param) from None


def _converted(values: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
    return msgspec.convert(_whole(values, _DEEPEST), kind)


def _whole(value: Any, depth: int) -> Any:
    """JSON has one kind of number, and so have many of its writers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict) and depth:
        return {name: _whole(each, depth - 1) for name, each in value.items()}
    if isinstance(value, list) and depth:
        return [_whole(each, depth - 1) for each in value]
    return value


def _locate(message: str) -> tuple[str, str | None]:
    """msgspec's "Expected `int`, got `str` - at `$.n`" as ("n: expected …", "n")."""
    match = _AT_PATH.search(message)
    path = match["path"].removeprefix("$").removeprefix(".") if match else ""
    text = message[: match.start()] if match else message
    missing = re.search(r"missing required field `(\w+)`", text)
    if missing:
        path = f"{path}.{missing[1]}".removeprefix(".")
        return f"{path}: missing required parameter", path
    text = text[:1].lower() + text[1:]
    return (f"{path}: {text}", path) if path else (text, None)


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "an array")

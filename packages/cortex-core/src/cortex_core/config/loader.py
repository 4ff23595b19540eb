"""Load a configuration: TOML, then environment, then flags; refuse what is unknown or wrong.

A configuration that starts and then fails is the failure this module exists to prevent, so every
refusal names its source (file, variable or flag), the key, and what was expected.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from cortex_core.choices import with_choices

__all__ = ["ConfigError", "load_config", "parse_address"]

T = TypeVar("T", bound=msgspec.Struct)

# One letter wrong in five, say. Variables that Kubernetes makes up come to 0.77 at most.
_ALMOST = 0.8

_AT_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")


class ConfigError(Exception):
    """A configuration was refused. `source` is the file, variable or flag at fault."""

    def __init__(self, source: str, key: str | None, problem: str) -> None:
        super().__init__(f"{source}: {key}: {problem}" if key else f"{source}: {problem}")
        self.source = source
        self.key = key
        self.problem = problem


def load_config(
    kind: type[T],
    path: Path | None,
    environment: Mapping[str, str],
    prefix: str,
    *,
    flags: Mapping[str, Any] | None = None,
    reserved: Collection[str] = (),
) -> T:
    """The effective configuration of type `kind` (all of whose structs forbid unknown fields).

    path: a TOML file, or None for defaults only.
    environment: variables named `prefix` + path, levels joined by `__` (`CORTEX_GATEWAY__LISTEN`);
        a list or table is given as JSON. `reserved` variables belong to somebody else, and so do
        those that are nothing like a key.
    flags: dotted key → value, from the command line; None values count as not given.
    Raises ConfigError.
    """
    tree = _read_toml(path) if path is not None else {}
    if path is not None:
        _check(tree, kind, str(path))
    for name in sorted(environment):
        if name.startswith(prefix) and name not in reserved:
            keys = name.removeprefix(prefix).lower().split("__")
            if not _is_meant(keys, kind, prefix, name):
                continue
            _set(tree, kind, keys, environment[name], name)
            _check(tree, kind, name)
    for dotted, value in (flags or {}).items():
        if value is not None:
            _set(tree, kind, dotted.split("."), value, f"--{dotted.rpartition('.')[2]}")
    return _check(tree, kind, "flags" if flags else str(path or "defaults"))


def parse_address(text: str) -> tuple[str, int]:
    """`host:port` as (host, port); an IPv6 host is in brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"expected host:port, got {text!r}")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(str(path), None, "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), None, f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), None, f"not valid TOML: {error}") from None


def _check(tree: dict[str, Any], kind: type[T], source: str) -> T:
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise _located(str(error), kind, source) from None


def _is_meant(keys: list[str], kind: type[msgspec.Struct], prefix: str, name: str) -> bool:
    """Whether the variable is for us: it has two levels, or is a key. Others use our prefixes, too:
    Kubernetes sets CORTEX_PORT and CORTEX_SERVICE_HOST beside a service that is called cortex.
    Raises ConfigError for what is almost a key, or one without its table."""
    if len(keys) > 1 or keys[0] in kind.__struct_encode_fields__:
        return True
    meant: dict[str, str] = {}
    for field in kind.__struct_encode_fields__:
        table = _struct_at(kind, [field])
        for key in table.__struct_encode_fields__ if table else ():
            meant[key] = meant[f"{field}_{key}"] = f"{field}__{key}"
    meant |= {field: field for field in kind.__struct_encode_fields__}
    near = difflib.get_close_matches(keys[0], meant, n=1, cutoff=_ALMOST)
    if not near:
        return False
    wanted = prefix + meant[near[0]].upper()
    raise ConfigError(name, None, f"unknown variable; did you mean {wanted}?")


def _located(message: str, kind: type[msgspec.Struct], source: str) -> ConfigError:
    match = _AT_PATH.search(message)
    path = match["path"] if match else ""
    text = message[: match.start()] if match else message
    field = re.fullmatch(r"Object (contains unknown|missing required) field `(\w+)`", text)
    if not field:
        keys = re.sub(r"\[[^]]*\]", ".0", path).split(".")
        owner = _struct_at(kind, keys[:-1])
        hint = get_type_hints(owner).get(keys[-1]) if owner else None
        text = with_choices(text[:1].lower() + text[1:], hint)
        return ConfigError(source, path or None, text)
    key = f"{path}.{field[2]}".removeprefix(".")
    if field[1] == "missing required":
        return ConfigError(source, key, "required, but missing")
    owner = _struct_at(kind, re.sub(r"\[[^]]*\]", ".0", path).split("."))
    return ConfigError(source, key, "unknown key" + _did_you_mean(field[2], owner))


def _did_you_mean(name: str, owner: type[msgspec.Struct] | None) -> str:
    fields = owner.__struct_encode_fields__ if owner else ()
    near = difflib.get_close_matches(name, fields, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known here: {', '.join(fields)}" if fields else ""


def _set(
    tree: dict[str, Any], kind: type[msgspec.Struct], keys: list[str], value: Any, source: str
) -> None:
    """Put `value`, text turned into the type that `kind` wants at `keys`, into the tree."""
    at = tree
    for depth, key in enumerate(keys):
        owner = _struct_at(kind, keys[:depth])
        if owner is None or key not in owner.__struct_encode_fields__:
            raise ConfigError(source, ".".join(keys), "unknown key" + _did_you_mean(key, owner))
        if depth < len(keys) - 1:
            at = at.setdefault(key, {})
    owner = _struct_at(kind, keys[:-1])
    assert owner is not None
    at[keys[-1]] = _typed(value, get_type_hints(owner)[keys[-1]], ".".join(keys), source)


def _typed(value: Any, wanted: Any, key: str, source: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        if _is_container(wanted):
            return msgspec.to_builtins(msgspec.json.decode(value, type=wanted))
        return msgspec.to_builtins(msgspec.convert(value, wanted, strict=False))
    except msgspec.DecodeError as error:
        text = with_choices(_AT_PATH.sub("", str(error)), wanted)
        raise ConfigError(source, key, f"{text[:1].lower()}{text[1:]}: {value!r}") from None


def _is_container(kind: Any) -> bool:
    if get_origin(kind) in (list, tuple, dict):
        return True
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _struct_at(kind: Any, keys: list[str]) -> type[msgspec.Struct] | None:
    """The struct type reached by following `keys`; list indices and tables are stepped into."""
    for key in filter(None, keys):
        if get_origin(kind) in (list, tuple):
            kind = get_args(kind)[0]
            continue
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return None
        if key not in kind.__struct_encode_fields__:
            return None
        kind = get_type_hints(kind)[key]
    is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    return kind if is_struct else None

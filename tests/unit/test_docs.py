"""The configuration reference lags behind no field, and the shipped examples load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click
import msgspec
import pytest

from cortex_cli.app import cortex
from cortex_core.config.gateway import GatewayConfig, load_gateway_config
from cortex_core.config.models import ModelsConfig, load_models
from cortex_core.config.neuron import NeuronConfig, load_neuron_config

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "configuration.md").read_text("utf-8")
CONFIGS: dict[str, type[msgspec.Struct]] = {
    "CORTEX_": GatewayConfig,
    "NEURON_": NeuronConfig,
    "": ModelsConfig,  # has no variables
}


def _fields(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, default) of every leaf; a list of tables is `name[]`."""
    hints = get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        key, hint = prefix + field.name, hints[field.name]
        item = get_args(hint)[0] if get_origin(hint) is list else None
        if _is_struct(hint):
            yield from _fields(hint, f"{key}.")
        elif _is_struct(item):
            yield from _fields(item, f"{key}[].")
        else:
            default = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            yield key, default


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


KEYS = [
    (prefix, key, default) for prefix, kind in CONFIGS.items() for key, default in _fields(kind)
]


def _cells(key: str) -> list[str]:
    row = re.search(rf"^\| `{re.escape(key)}` \|(.*)\|$", REFERENCE, re.MULTILINE)
    assert row, f"docs/configuration.md has no row for `{key}`"
    return [cell.strip() for cell in row[1].split(" | ")]


def _rendered(default: Any) -> str:
    if default is msgspec.NODEFAULT:
        return "required"
    return "none" if default is None else f"`{msgspec.json.encode(default).decode()}`"


@pytest.mark.parametrize(("prefix", "key", "default"), KEYS, ids=[p + k for p, k, _ in KEYS])
def test_every_key_is_documented_with_its_default(prefix: str, key: str, default: Any) -> None:
    assert _rendered(default) in _cells(key)


@pytest.mark.parametrize(
    ("prefix", "key"), [(prefix, key) for prefix, key, _ in KEYS if prefix and "[]" not in key]
)
def test_every_key_is_documented_with_its_variable(prefix: str, key: str) -> None:
    assert f"`{prefix}{key.upper().replace('.', '__')}`" in _cells(key)


def test_no_key_is_documented_that_does_not_exist() -> None:
    documented = set(re.findall(r"^\| `([a-z_.\[\]]+)` \|", REFERENCE, re.MULTILINE))
    assert documented == {key for _, key, _ in KEYS}


EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    if path.name.startswith("models"):
        load_models(path)
        return
    load = load_neuron_config if path.name.startswith("neuron") else load_gateway_config
    load(path, environment={})


def test_there_is_an_example_of_each_file() -> None:
    assert {"cortex.toml", "models.toml", "neuron.toml"} <= {path.name for path in EXAMPLES}


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TYPED = [
    (path.name, line.partition("#")[0].removeprefix("$ cortex ").split())
    for path in DOCUMENTS
    for line in path.read_text("utf-8").splitlines()
    if line.startswith("$ cortex ")
]


@pytest.mark.parametrize(("document", "words"), TYPED, ids=[" ".join(w) for _, w in TYPED])
def test_every_command_line_in_the_documents_exists(document: str, words: list[str]) -> None:
    context = click.Context(cortex)
    command: click.Command = cortex
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found, f"{document}: no such command: {name}"
        command = found
    known = {option for param in command.params for option in param.opts}
    assert {word for word in words if word.startswith("-")} <= known


LINKS = [
    (path, target)
    for path in DOCUMENTS
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text("utf-8"))
]


@pytest.mark.parametrize(("path", "target"), LINKS, ids=[f"{p.name}-{t}" for p, t in LINKS])
def test_every_link_between_files_leads_somewhere(path: Path, target: str) -> None:
    assert (path.parent / target).exists()

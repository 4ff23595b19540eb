"""The examples of clients' settings can be read and name what cortex has."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from cortex_core.config.gateway import GatewaySection

FOLDER = Path(__file__).parents[3] / "examples" / "clients"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix != ".md")
READERS = {".json": json.loads, ".toml": tomllib.loads, ".yaml": yaml.safe_load}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_clients_example_names_the_default_address_and_the_shipped_model(path: Path) -> None:
    text = path.read_text("utf-8")
    assert READERS.get(path.suffix.replace("yml", "yaml"), str)(text)
    assert "cortex/tiny" in text
    ports = set(re.findall(r"http://127\.0\.0\.1:(\d+)", text))
    assert ports == {GatewaySection().listen.rpartition(":")[2]}


def test_every_example_is_in_the_list() -> None:
    listed = re.findall(r"\]\(([\w.-]+)\)", (FOLDER / "README.md").read_text("utf-8"))
    assert sorted(listed) == [path.name for path in FILES]

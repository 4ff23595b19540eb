"""Each package can be installed alone, and each room holds only what may be in it."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[3] / "packages"
NAMES = ["cortex-core", "cortex-gateway", "neuron", "cortex-cli"]
IMPORT_OF = {
    "cortex-core": "cortex_core",
    "cortex-gateway": "cortex_gateway",
    "helexa-neuron": "neuron",
    "llama-cpp-python": "llama_cpp",
    "nvidia-ml-py": "pynvml",
    "prometheus-client": "prometheus_client",
    "opentelemetry-sdk": "opentelemetry",
}
# Dependencies of declared dependencies that are part of those libraries' own interface.
COMES_WITH = {"yarl": "aiohttp", "multidict": "aiohttp", "h2": "hypercorn"}


def _project(package: str) -> dict:
    return tomllib.loads((PACKAGES / package / "pyproject.toml").read_text("utf-8"))["project"]


def _sources(package: str) -> list[Path]:
    return sorted((PACKAGES / package / "src").rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", NAMES)
def test_a_package_declares_what_it_imports(package: str):
    declared = {
        IMPORT_OF.get(name, name)
        for requirement in _project(package)["dependencies"]
        for name in [requirement.split(">")[0].split("=")[0].strip()]
    }
    (own,) = [path.name for path in (PACKAGES / package / "src").iterdir() if path.is_dir()]
    for path in _sources(package):
        for module in _imports(path):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top != own:
                assert COMES_WITH.get(top, top) in declared, f"{path} imports {module}"


@pytest.mark.parametrize("package", NAMES)
def test_a_package_has_a_readme_and_says_that_it_is_typed(package: str):
    assert len((PACKAGES / package / "README.md").read_text("utf-8").splitlines()) >= 3
    assert list((PACKAGES / package / "src").glob("*/py.typed"))


def test_the_core_does_no_io_and_has_no_clock():
    barred = {"asyncio", "subprocess", "socket", "http", "time", "datetime", "threading", "urllib"}
    for path in _sources("cortex-core"):
        modules = set(_imports(path)) - {"urllib.parse"}  # which only takes text apart
        assert not {module.partition(".")[0] for module in modules} & barred, path


def test_both_daemons_mend_their_server_alike():
    one, other = (
        PACKAGES / package / "src" / room / "hypercorn_mends.py"
        for package, room in (("cortex-gateway", "cortex_gateway"), ("neuron", "neuron"))
    )
    assert one.read_text("utf-8") == other.read_text("utf-8")


def test_only_the_worker_touches_llama_cpp():
    for package in NAMES:
        for path in _sources(package):
            if "worker" not in path.parts:
                assert not any(m.startswith("llama_cpp") for m in _imports(path)), path


def test_the_command_line_knows_neurons_by_http_only():
    for path in _sources("cortex-cli"):
        assert not any(module.partition(".")[0] == "neuron" for module in _imports(path)), path


def test_no_module_owns_everything():
    for package in NAMES:
        for path in _sources(package):
            assert len(path.read_text("utf-8").splitlines()) <= 500, path

"""Models that come and go on real neurons, as requests for them do."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import Answer, fetch
from tests.e2e.conftest import gateway_config
from tests.processes import Daemon, start_gateway, start_neuron

ROOM_MB = 50  # for one model with this context, not for two
CONTEXT = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three copies of the model that ships, which are three models to the fleet."""
    spec = find_spec("neuron")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two", "three"):
        shutil.copy(Path(spec.origin).parent / "assets" / "tiny.gguf", folder / f"{name}.gguf")
    return folder


@contextmanager
def a_fleet(folder: Path, nodes: int) -> Iterator[tuple[Daemon, list[Daemon]]]:
    """A gateway with the aliases one, two and three over neurons that hold one of them each."""
    names = ("one", "two", "three")
    catalogue = folder / "models.toml"
    entries = [f'[[models]]\nid = "{folder / name}.gguf"\ncontext = {CONTEXT}\n' for name in names]
    aliases = [f'{name} = "{folder / name}.gguf"\n' for name in names]
    catalogue.write_text("".join([*entries, "[aliases]\n", *aliases]), "utf-8")
    config = (
        f"[devices]\ncpu_workers = 1\nmemory_mb = {ROOM_MB}\n"
        f'[models]\nlocal = ["{folder}"]\n[engine]\nparallel = 1\n'
    )
    with start_neurons(config, nodes) as neurons:
        text = gateway_config(*(neuron.url for neuron in neurons))
        text = text.replace("[gateway]\n", f'[gateway]\nmodels = "{catalogue}"\n')
        with start_gateway(text + "[eviction]\nmin_residency_s = 0\n") as gateway:
            yield gateway, neurons


@contextmanager
def start_neurons(config: str, count: int) -> Iterator[list[Daemon]]:
    with start_neuron(config=config, models=()) as neuron:
        if count == 1:
            yield [neuron]
        else:
            with start_neurons(config, count - 1) as others:
                yield [neuron, *others]


async def chat(gateway: Daemon, model: str) -> Answer:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 40,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    return await fetch("POST", f"{gateway.url}/v1/chat/completions", body)


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.body["choices"][0]["message"]["content"]


async def loaded(gateway: Daemon) -> dict[str, list[str]]:
    """Alias → the nodes where its model is ready."""
    listed = (await fetch("GET", f"{gateway.url}/v1/models")).body["data"]
    return {
        entry["id"]: [place["node"] for place in entry["locations"] if place["state"] == "ready"]
        for entry in listed
        if entry["alias_of"]
    }


async def admin(gateway: Daemon, path: str, body: Any = None) -> Answer:
    return await fetch("POST", f"{gateway.url}/admin/{path}", {} if body is None else body)


async def test_models_take_turns_on_a_node_that_has_room_for_one(folder: Path) -> None:
    with a_fleet(folder, 1) as (gateway, _):
        for model in ("one", "two", "one"):
            assert "Paris" in text_of(await chat(gateway, model))
            assert {name for name, nodes in (await loaded(gateway)).items() if nodes} == {model}


async def test_everybody_is_served_when_models_compete_for_nodes(folder: Path) -> None:
    with a_fleet(folder, 2) as (gateway, _):
        models = ("one", "two", "three") * 4
        answers = await asyncio.gather(*(chat(gateway, model) for model in models))
        assert all("Paris" in text_of(answer) for answer in answers)


async def test_a_drained_nodes_model_is_loaded_elsewhere_and_what_runs_finishes(
    folder: Path,
) -> None:
    with a_fleet(folder, 2) as (gateway, _):
        node = (await chat(gateway, "one")).headers["x-cortex-node"]
        assert (await admin(gateway, f"nodes/{node}/drain")).body["not_told"] is None
        other = (await chat(gateway, "one")).headers["x-cortex-node"]
        assert other != node
        assert (await admin(gateway, f"nodes/{node}/undrain")).body["not_told"] is None
        assert sorted((await loaded(gateway))["one"]) == ["n0", "n1"]


async def test_a_neuron_that_is_killed_is_replaced_by_another(folder: Path) -> None:
    with a_fleet(folder, 2) as (gateway, neurons):
        node = (await chat(gateway, "one")).headers["x-cortex-node"]
        neurons[int(node[1:])].process.kill()
        answer = await chat(gateway, "one")
        assert "Paris" in text_of(answer)
        assert answer.headers["x-cortex-node"] != node

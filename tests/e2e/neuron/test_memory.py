"""What a load takes, over HTTP: told before, refused where it cannot be, measured after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.e2e.neuron.client import Client, connect
from tests.processes import Daemon, start_neuron
from tools.make_gguf import PRESETS, make_gguf

MIB = 2**20


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("memory")
    for name in ("toy", "tiny-llama"):
        make_gguf(folder / f"{name}.gguf", PRESETS[name])
    config = (
        f'name = "box"\n[models]\nlocal = ["{folder}"]\n'
        '[engine]\nparallel = 2\n[[default_models]]\nid = "toy.gguf"\nkv_type = "q8_0"\n'
    )
    with start_neuron(config=config) as daemon:
        yield daemon


@pytest.fixture
async def client(neuron: Daemon) -> AsyncIterator[Client]:
    async with connect(neuron.url) as client:
        await client.until_ready("toy.gguf")
        yield client


async def model(client: Client, name: str) -> dict[str, Any] | None:
    models = (await client.get("/models")).json["models"]
    return next((found for found in models if found["id"] == name), None)


async def test_what_was_told_is_what_is_measured(client: Client):
    order = {"model": "tiny-llama.gguf", "context": 1024, "parallel": 3, "kv": "unified"}
    told = (await client.post("/models/estimate", order)).json
    assert told["fits"] is True
    assert (told["context"], told["parallel"], told["kv"]) == (1024, 3, "unified")
    assert await model(client, "tiny-llama.gguf") is None

    loaded = (await client.post("/models/load", order | {"wait": True})).json["result"]
    assert (loaded["kv"], loaded["cells"], loaded["limit"]) == ("unified", 3072, {"context": 1024})
    for part in ("weights_bytes", "kv_bytes", "compute_bytes"):
        assert told[part] == pytest.approx(loaded[part], rel=0.1)
    await client.post("/models/unload", {"model": "tiny-llama.gguf", "wait": True})


async def test_an_estimate_is_per_device(client: Client):
    told = (await client.post("/models/estimate", {"model": "toy.gguf"})).json
    (device,) = told["devices"]
    assert device["device"] == told["device"]
    assert device["total_bytes"] == told["total_bytes"]
    assert 0 < device["free_bytes"] <= device["memory_bytes"]
    assert told["largest_context"] == 8192


async def test_a_load_that_cannot_fit_is_refused_with_need_and_have(client: Client):
    order = {"model": "tiny-llama.gguf", "context": 1_000_000_000, "parallel": 256}
    told = (await client.post("/models/estimate", order)).json
    assert told["fits"] is False
    refused = await client.post("/models/load", order)
    assert refused.status == 422
    assert refused.error["code"] == "insufficient_memory"
    assert "needs" in refused.error["message"]
    assert "free" in refused.error["message"]
    assert await model(client, "tiny-llama.gguf") is None


async def test_a_default_model_has_its_own_options_and_a_context_that_fits(client: Client):
    found = await model(client, "toy.gguf")
    assert found is not None
    assert found["kv_type"] == "q8_0"
    assert found["limit"] == {"context": 8192}
    assert found["parallel"] == 2


@pytest.mark.parametrize("path", ["/models/load", "/models/estimate"])
@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"kv_type": "q8_0"}, "kv_type"),  # a head of this model has 16 numbers
        ({"kv_type": "q5_1"}, "kv_type"),
        ({"kv": "none"}, "kv"),
        ({"cells": 100, "context": 512}, "cells"),
        ({"cells": 600, "context": 512, "kv": "partitioned"}, "cells"),
        ({"gpu_layers": 3}, "gpu_layers"),
        ({"tensor_split": [1, 2]}, "tensor_split"),
        ({"main_gpu": 1}, "main_gpu"),
        ({"device": "cuda:7"}, "device"),
        ({"kv_typ": "f16"}, "kv_typ"),
    ],
    ids=str,
)
async def test_an_option_that_cannot_be_is_refused_by_name(
    client: Client, path: str, options: dict[str, Any], param: str
):
    refused = await client.post(path, {"model": "tiny-llama.gguf"} | options)
    assert refused.status == 400
    assert refused.error["param"] == param
    assert await model(client, "tiny-llama.gguf") is None


async def test_a_word_that_is_none_of_the_choices_is_told_them(client: Client):
    refused = await client.post("/models/load", {"model": "toy.gguf", "kv_type": "q5_1"})
    assert "'q5_1'; expected 'f16' or 'q8_0' or 'q4_0'" in refused.error["message"]


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("nothing.gguf", 422, "gguf_missing"), ("/etc/passwd", 403, "forbidden")],
)
async def test_an_estimate_reads_only_what_may_be_loaded(
    client: Client, name: str, status: int, code: str
):
    refused = await client.post("/models/estimate", {"model": name})
    assert (refused.status, refused.error["code"]) == (status, code)

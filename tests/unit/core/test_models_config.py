"""A catalogue that is wrong anywhere refuses to load, naming file, key and expectation."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex_core.config.gateway import load_gateway_config
from cortex_core.config.loader import ConfigError
from cortex_core.config.models import ModelEntry, load_models


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "models.toml"
        path.write_text(text)
        return path

    return write


def test_an_empty_file_is_an_empty_catalogue(write):
    config = load_models(write(""), ["a"])
    assert (config.models, config.aliases) == ([], {})


def test_every_section_of_an_entry_is_read(write):
    path = write(
        '[[models]]\nid = "m"\nsource = "hub"\ncontext = 4096\npinned_on = ["a"]\nttl_s = 60\n'
        "sampling = { temperature = 0.5 }\nlimit.context = 4096\ncost.input = 1\n"
        'capabilities = ["chat"]\n[aliases]\nfast = "m"\nother = "not/listed"\n'
    )
    config = load_models(path, ["a", "b"])
    entry = config.models[0]
    assert entry.is_pinned_on("a")
    assert not entry.is_pinned_on("b")
    assert (entry.limit.context, entry.cost.input, entry.ttl_s) == (4096, 1.0, 60.0)
    assert entry.capabilities == ("chat",)
    assert config.aliases == {"fast": "m", "other": "not/listed"}


def test_a_load_says_what_is_configured_and_nothing_else(write):
    path = write(
        '[[models]]\nid = "m"\nsource = "hub"\ncontext = 4096\nkv_type = "q8_0"\npinned = true\n'
        "sampling = { top_k = 20 }\n"
    )
    entry = load_models(path).models[0]
    assert entry.estimate_options() == {"source": "hub", "context": 4096, "kv_type": "q8_0"}
    assert entry.load_options() == entry.estimate_options() | {"sampling": {"top_k": 20}}
    assert ModelEntry(id="m").load_options() == {}


def test_a_pinned_model_is_pinned_everywhere():
    assert ModelEntry(id="m", pinned=True).is_pinned_on("anywhere")


FAULTS = [
    ("[[model]]", "model", "did you mean 'models'"),
    ('[[models]]\nid = ""', "models[0].id", "length >= 1"),
    ("[[models]]\npinned = true", "models[0].id", "required, but missing"),
    ('[[models]]\nid = "m"\npined = true', "models[0].pined", "did you mean 'pinned'"),
    ('[[models]]\nid = "m"\ncontext = -1', "models[0].context", ">= 0"),
    ('[[models]]\nid = "m"\nttl_s = 0', "models[0].ttl_s", "> 0"),
    ('[[models]]\nid = "m"\nreplicas = 0', "models[0].replicas", ">= 1"),
    ('[[models]]\nid = "m"\ncost.input = -1', "models[0].cost.input", ">= 0"),
    ('[[models]]\nid = "m"\nlimit.outpt = 1', "models[0].limit.outpt", "did you mean 'output'"),
    ('[[models]]\nid = "m"\ncapabilities = ["chta"]', "models[0].capabilities[0]", "chta"),
    ('[[models]]\nid = "m"\nsampling.top_p = 2', "models[0].sampling.top_p", "from 0 to 1"),
    ('[[models]]\nid = "m"\nsampling.stream = true', "models[0].sampling.stream", "unknown key"),
    (
        '[[models]]\nid = "m"\nkv_type = "q4_0"\nflash_attention = false',
        "models[0].flash_attention",
        "KV cache of type q4_0 needs it",
    ),
    ('[[models]]\nid = "m"\n' * 2, "models[1].id", "given twice"),
    (
        '[[models]]\nid = "m"\npinned_on = ["a", "c"]',
        "models[0].pinned_on[1]",
        "no neuron is called 'c'; configured: a, b",
    ),
    ('[[models]]\nid = "m"\n[aliases]\nm = "n"', "aliases.m", "is a model's id"),
    ('[aliases]\nx = "y"\ny = "m"', "aliases.x", "'y' is an alias itself"),
    ('[aliases]\nx = "x"', "aliases.x", "'x' is an alias itself"),
    ('[aliases]\nx = ""', "aliases.x", "got nothing"),
    ("[aliases]\nx = 3", "aliases[...]", "expected `str`"),
]


@pytest.mark.parametrize(("text", "key", "problem"), FAULTS, ids=lambda x: str(x)[:40])
def test_a_fault_in_models_toml_names_file_key_and_expectation(
    write, text: str, key: str, problem: str
):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_models(path, ["a", "b"])
    assert caught.value.source == str(path)
    assert caught.value.key == key
    assert problem in caught.value.problem


NEURON = '[[neurons]]\nname = "a"\nendpoint = "http://h:1"\n'


def test_the_catalogue_lies_beside_the_gateways_file_and_is_checked_with_it(write, tmp_path: Path):
    models = write('[[models]]\nid = "m"\npinned_on = ["a"]\n')
    path = tmp_path / "cortex.toml"
    path.write_text(f'[gateway]\nmodels = "models.toml"\n{NEURON}')
    assert load_gateway_config(path, {}).gateway.models == str(models)
    write('[[models]]\nid = "m"\npinned_on = ["b"]\n')
    with pytest.raises(ConfigError, match=r"models\.toml: models\[0\]\.pinned_on\[0\]: .*'b'"):
        load_gateway_config(path, {})


def test_a_catalogue_that_is_not_there_is_named(tmp_path: Path):
    path = tmp_path / "cortex.toml"
    path.write_text('[gateway]\nmodels = "/nonexistent/models.toml"\n')
    with pytest.raises(ConfigError, match=r"/nonexistent/models\.toml: no such file"):
        load_gateway_config(path, {})

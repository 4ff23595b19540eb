"""A name leads to a model, a model to how it is kept, and a wrong name to those that are near."""

from __future__ import annotations

from cortex_core.config.models import ModelEntry
from cortex_core.fleet.catalogue import Catalogue

CATALOGUE = Catalogue(
    [ModelEntry(id="Qwen/Qwen3-8B-GGUF:Q4_K_M", pinned=True), ModelEntry(id="cortex/tiny")],
    {"coder": "Qwen/Qwen3-8B-GGUF:Q4_K_M", "elsewhere": "not/listed"},
)


def test_an_alias_leads_to_its_model_and_any_other_name_to_itself():
    assert CATALOGUE.resolve("coder") == "Qwen/Qwen3-8B-GGUF:Q4_K_M"
    assert CATALOGUE.resolve("elsewhere") == "not/listed"
    assert CATALOGUE.resolve("Coder") == "Coder"


def test_ids_keep_the_operators_order_and_aliases_are_none():
    assert CATALOGUE.ids == ("Qwen/Qwen3-8B-GGUF:Q4_K_M", "cortex/tiny")
    assert "cortex/tiny" in CATALOGUE
    assert "coder" not in CATALOGUE


def test_a_model_that_is_not_listed_has_every_default():
    assert CATALOGUE.entry("not/listed") == ModelEntry(id="not/listed")
    assert CATALOGUE.entry("Qwen/Qwen3-8B-GGUF:Q4_K_M").pinned


def test_a_misspelt_name_is_answered_with_the_nearest():
    assert CATALOGUE.near("cortex/tony") == ["cortex/tiny"]
    assert CATALOGUE.near("codr")[0] == "coder"


def test_case_and_a_missing_owner_or_tag_do_not_hide_a_name():
    assert CATALOGUE.near("qwen3-8b") == ["Qwen/Qwen3-8B-GGUF:Q4_K_M"]
    assert CATALOGUE.near("TINY") == ["cortex/tiny"]


def test_what_nodes_hold_is_near_too_and_nothing_is_near_to_nonsense():
    assert CATALOGUE.near("llama-3", ["/srv/llama-3b.gguf"]) == ["/srv/llama-3b.gguf"]
    assert CATALOGUE.near("zzz", ["/srv/llama-3b.gguf"]) == []

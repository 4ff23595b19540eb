"""Lists of models as the vendor's own types read them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from anthropic.types import ModelInfo
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.envelopes.anthropic_models import model_info, page_of
from cortex_core.envelopes.models import ListedLimit, ListedModel
from cortex_core.errors import InvalidRequest


def listed(name: str, context: int = 8192, output: int | None = None) -> ListedModel:
    return ListedModel(name, True, [], ListedLimit(context, output))


def ids(page: Any) -> list[str]:
    return [model.id for model in page.data]


MODELS = [listed(name) for name in "abcde"]


def test_a_model_is_what_the_vendors_type_says():
    told = ModelInfo.model_validate(msgspec.to_builtins(model_info(listed("org/name", 4096, 512))))
    assert (told.id, told.display_name) == ("org/name", "org/name")
    assert (told.max_input_tokens, told.max_tokens) == (4096, 512)
    assert told.lifecycle == "active"
    assert told.created_at.year == 1970


def test_an_answer_may_be_as_long_as_the_context_and_what_is_not_known_is_not_told():
    assert model_info(listed("a", 4096)).max_tokens == 4096
    unknown = model_info(listed("a", 0))
    assert (unknown.max_input_tokens, unknown.max_tokens) == (None, None)


@pytest.mark.parametrize(
    ("query", "found", "has_more"),
    [
        ({}, "abcde", False),
        ({"limit": "2"}, "ab", True),
        ({"limit": "2", "after_id": "c"}, "de", False),
        ({"limit": "2", "before_id": "d"}, "bc", True),
        ({"before_id": "c"}, "ab", False),
        ({"after_id": "e"}, "", False),
        ({"lifecycle": ["active", "retired"]}, "abcde", False),
        ({"lifecycle": ["retired"]}, "", False),
    ],
)
def test_a_page_is_what_the_query_asks_for(query: dict[str, Any], found: str, has_more: bool):
    page = page_of(MODELS, **query)
    assert ids(page) == list(found)
    assert page.has_more is has_more
    assert (page.first_id, page.last_id) == ((found[0], found[-1]) if found else (None, None))


@given(st.integers(1, 7))
def test_page_by_page_every_model_comes_once(size: int):
    page = page_of(MODELS, limit=str(size))
    found = ids(page)
    while page.has_more:
        page = page_of(MODELS, limit=str(size), after_id=page.last_id)
        found += ids(page)
    assert found == list("abcde")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"limit": "²"}, "limit"),
        ({"after_id": "z"}, "after_id"),
        ({"before_id": "z"}, "before_id"),
        ({"after_id": "a", "before_id": "c"}, "before_id"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_by_name(query: dict[str, str], param: str):
    with pytest.raises(InvalidRequest) as refused:
        page_of(MODELS, **query)
    assert refused.value.param == param

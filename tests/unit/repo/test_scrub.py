"""What is kept of a coding agent's request is its shape."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.corpus.scrub import FILLER, Scrubber

KEYS = st.sampled_from(["type", "text", "description", "enum", "input"])
TEXTS = st.text(st.sampled_from("XYZ \n"), max_size=30)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else type(value)


@given(VALUES)
def test_keys_types_and_nesting_stay(value: Any) -> None:
    assert shape(Scrubber("m").value(value)) == shape(value)


@given(st.text("XYZ \n", min_size=3).filter(lambda text: len(text.split()) > 1))
def test_no_word_of_a_text_stays_and_it_grows_no_longer(text: str) -> None:
    told = Scrubber("m").value({"description": text})["description"]
    assert set(told.split()) <= set(FILLER.split())
    assert len(told) <= len(text)


def test_what_a_schema_allows_stays_and_a_property_of_such_a_name_is_none() -> None:
    schema = {"properties": {"pattern": {"description": "X Y"}}, "required": ["pattern"]}
    assert Scrubber("m").value(schema | {"enum": ["X Y"]}) == {
        "properties": {"pattern": {"description": "a"}},
        "required": ["pattern"],
        "enum": ["X Y"],
    }


def test_an_id_is_the_same_one_wherever_it_is() -> None:
    first, second = "0d9a1f5e-93c1-4f0b-8a70-5a1f0e9b7c11", "ab" * 16
    value = {"id": f"msg_{first}", "metadata": json.dumps({"session": first, "device": second})}
    scrubbed = Scrubber("m").value(value)
    inner = json.loads(scrubbed["metadata"])
    assert scrubbed["id"] == f"msg_{inner['session']}"
    assert len({first, second, *inner.values()}) == 4


def test_a_path_tells_of_no_machine() -> None:
    read = Scrubber("m").value("/home/jane/work/shop/cart.py")
    assert read == "/home/dev/shop/cart.py"

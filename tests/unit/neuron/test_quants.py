"""Which file of a repo a quant tag means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.models.quants import choose, tags_of, whole_models

REPO = [
    "README.md",
    "Small-0.6B-BF16.gguf",
    "Small-0.6B-IQ4_XS.gguf",
    "Small-0.6B-Q4_K_M.gguf",
    "Small-0.6B-Q4_K_S.gguf",
    "Small-0.6B-Q8_0.gguf",
    "Small-0.6B-UD-Q4_K_XL.gguf",
    "mmproj-F16.gguf",
    "Small-0.6B-imatrix.gguf",
]
PARTS = [f"Q8_0/Big-Q8_0-{n:05}-of-00003.gguf" for n in (2, 3, 1)]


def test_what_is_no_model_by_itself_is_left_out():
    assert list(whole_models(REPO)) == REPO[1:7]


def test_the_parts_of_a_model_are_one_model_in_order():
    first, *others = sorted(PARTS)
    assert whole_models(PARTS) == {first: [first, *others]}


@pytest.mark.parametrize("missing", PARTS)
def test_a_model_that_lacks_a_part_is_none(missing: str):
    assert whole_models(set(PARTS) - {missing}) == {}


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("Q4_K_M", "Small-0.6B-Q4_K_M.gguf"),
        ("q4_k_m", "Small-0.6B-Q4_K_M.gguf"),
        ("Q8_0", "Small-0.6B-Q8_0.gguf"),
        ("bf16", "Small-0.6B-BF16.gguf"),
        ("UD-Q4_K_XL", "Small-0.6B-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "Small-0.6B-UD-Q4_K_XL.gguf"),
        ("Small-0.6B-Q8_0.gguf", "Small-0.6B-Q8_0.gguf"),
        ("Q4_K", None),  # the beginning of a word is not the word
        ("4_XS", None),
        ("Q5_K_M", None),
    ],
)
def test_a_tag_means_the_file_that_ends_in_it_in_any_case(tag: str, name: str | None):
    assert choose(whole_models(REPO), tag) == name


def test_a_folder_may_name_the_quant():
    assert choose(["Q8_0/model.gguf", "Q2_K/model.gguf"], "q2_k") == "Q2_K/model.gguf"


def test_a_name_that_ends_in_the_tag_is_meant_before_one_that_only_contains_it():
    names = ["a-q8_0.gguf", "long-name-Q8_0.gguf", "Q8_0-b.gguf"]
    assert choose(names, "Q8_0") == "a-q8_0.gguf"
    assert choose(names[1:], "Q8_0") == "long-name-Q8_0.gguf"


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (REPO[1:7], "Small-0.6B-Q4_K_M.gguf"),
        (["a-Q2_K.gguf", "a-q8_0.gguf"], "a-q8_0.gguf"),
        (["b.gguf", "a.gguf"], "a.gguf"),
        ([], None),
    ],
)
def test_without_a_tag_the_preferred_quants_go_first(names: list[str], name: str | None):
    assert choose(names, None) == name


def test_each_model_of_a_repo_has_a_tag_to_ask_for_it():
    models = whole_models([*REPO, "plain.gguf"])
    assert list(tags_of(models)) == [
        "BF16",
        "IQ4_XS",
        "Q4_K_M",
        "Q4_K_S",
        "Q8_0",
        "UD-Q4_K_XL",
        "plain.gguf",
    ]


@given(
    st.lists(
        st.from_regex(r"[a-zA-Z0-9_.-]{1,12}(-Q[2-8]_(0|K_M|K_S))?\.gguf", fullmatch=True),
        unique=True,
    )
)
def test_what_a_tag_is_made_from_is_what_it_means(names: list[str]):
    models = whole_models(names)
    for tag in tags_of(models):
        meant = choose(models, tag)
        assert meant is not None
        assert tag.lower().removesuffix(".gguf") in meant.lower()

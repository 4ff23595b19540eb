"""The radix tree against a plain dictionary of sequences."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.prefix_tree import Int32s, PrefixTree, common_prefix


def ids(*tokens: int) -> Int32s:
    return np.array(tokens, np.int32)


tokens = st.lists(st.integers(0, 2), max_size=12)


@given(tokens, tokens)
def test_a_common_prefix_is_common_and_longest(left: list[int], right: list[int]) -> None:
    size = common_prefix(ids(*left), ids(*right))
    assert left[:size] == right[:size]
    assert size == min(len(left), len(right)) or left[size] != right[size]


def test_keys_share_as_much_as_is_common() -> None:
    tree = PrefixTree[str]()
    tree.put("a", ids(1, 2, 3, 4))
    tree.put("b", ids(1, 2, 7))
    tree.put("c", ids(9))
    assert tree.shared(ids(1, 2, 3, 5)) == {"b": 2, "a": 3}


def test_the_longest_prefix_comes_last() -> None:
    tree = PrefixTree[str]()
    for key, length in (("long", 9), ("short", 2), ("middle", 5)):
        tree.put(key, ids(*range(length)))
    assert list(tree.shared(ids(*range(9)))) == ["short", "middle", "long"]


def test_what_was_split_for_one_is_merged_when_it_leaves() -> None:
    tree = PrefixTree[str]()
    tree.put("a", ids(1, 2, 3, 4))
    tree.put("b", ids(1, 2, 7))
    tree.drop("b")
    (node,) = tree._root.children.values()
    assert node.edge.tolist() == [1, 2, 3, 4]
    assert tree.tokens("a").tolist() == [1, 2, 3, 4]


operations = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 4), tokens),
    st.tuples(st.just("extend"), st.integers(0, 4), tokens),
    st.tuples(st.just("cut"), st.integers(0, 4), st.integers(0, 12)),
    st.tuples(st.just("drop"), st.integers(0, 4), st.none()),
)


@given(st.lists(operations, max_size=30), tokens)
def test_whatever_is_done_it_holds_what_a_dictionary_would(trace: list, prompt: list[int]) -> None:
    tree = PrefixTree[int]()
    plain: dict[int, list[int]] = {}
    for what, key, argument in trace:
        if what == "put":
            plain[key] = argument
            tree.put(key, ids(*argument))
        elif what == "drop":
            plain.pop(key, None)
            tree.drop(key)
        elif key in plain and what == "extend":
            plain[key] = plain[key] + argument
            tree.extend(key, ids(*argument))
        elif key in plain:
            plain[key] = plain[key][:argument]
            tree.cut(key, argument)
        assert {key: tree.tokens(key).tolist() for key in plain} == plain
        assert len(tree) == len(plain)
    expected = {key: common_prefix(ids(*prompt), ids(*held)) for key, held in plain.items()}
    found = tree.shared(ids(*prompt))
    assert found == {key: length for key, length in expected.items() if length}
    assert list(found.values()) == sorted(found.values())
    for key in plain:
        tree.drop(key)
    assert not tree._root.children

"""A request goes where its beginning has been computed, while that is no worse than elsewhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_core.fleet.affinity import BLOCK_BYTES, MOST_KEYS, Affinity, prefix_keys
from cortex_core.fleet.topology import Replica

A, B, C = (Replica("m", node, "cpu") for node in "abc")
FOUR = dict.fromkeys("abc", 4)
IDLE: dict[str, int] = {}


def _prompt(*blocks: str) -> tuple[int, ...]:
    return prefix_keys([block.encode().ljust(BLOCK_BYTES, b".") for block in blocks])


def test_keys_agree_exactly_as_far_as_the_bytes_do():
    first, second = _prompt("system", "hello", "x"), _prompt("system", "hello", "y")
    assert first[:2] == second[:2]
    assert first[2] != second[2]


def test_what_comes_before_a_block_is_part_of_its_key():
    assert _prompt("a", "same")[1] != _prompt("b", "same")[1]


def test_only_whole_blocks_have_keys():
    assert prefix_keys([b"x" * (BLOCK_BYTES - 1)]) == ()
    assert len(prefix_keys([b"x" * (2 * BLOCK_BYTES + 1)])) == 2
    assert len(prefix_keys([b"x" * (2 * MOST_KEYS * BLOCK_BYTES)])) == MOST_KEYS


@given(st.lists(st.binary(max_size=1500), max_size=6))
def test_how_the_bytes_are_cut_into_parts_does_not_matter(parts: list[bytes]):
    assert prefix_keys(parts) == prefix_keys([b"".join(parts)])


def test_a_conversation_goes_back_to_its_replica():
    affinity = Affinity()
    affinity.served(B, _prompt("system", "one"))
    longer = _prompt("system", "one", "answer", "two")
    assert affinity.choose([A, B, C], longer, {"b": 3}, FOUR) == B


def test_the_replica_that_knows_most_is_preferred_to_one_that_knows_less():
    affinity = Affinity()
    affinity.served(A, _prompt("system", "one"))
    affinity.served(B, _prompt("system", "one", "two"))
    assert affinity.choose([A, B, C], _prompt("system", "one", "two"), {"b": 3}, FOUR) == B


def test_without_a_prefix_the_least_loaded_gets_it_and_the_first_name_of_equals():
    affinity = Affinity()
    assert affinity.choose([C, B, A], (), {"a": 1}, FOUR) == B
    assert affinity.choose([C, B, A], (), IDLE, FOUR) == A


def test_load_is_measured_by_what_a_replica_can_take():
    assert Affinity().choose([A, B], (), {"a": 3, "b": 2}, {"a": 8, "b": 2}) == A


def test_affinity_yields_when_its_replica_is_full_and_another_is_half_as_loaded():
    affinity = Affinity()
    keys = _prompt("system", "one")
    affinity.served(A, keys)
    assert affinity.choose([A, B], keys, {"a": 3, "b": 0}, FOUR) == A
    assert affinity.choose([A, B], keys, {"a": 4, "b": 3}, FOUR) == A
    assert affinity.choose([A, B], keys, {"a": 4, "b": 2}, FOUR) == B


def test_a_hot_prefix_is_known_to_both_once_it_had_to_yield():
    affinity = Affinity()
    keys = _prompt("system", "one")
    affinity.served(A, keys)
    affinity.served(affinity.choose([A, B], keys, {"a": 4}, FOUR), keys)
    assert affinity.choose([A, B], keys, {"a": 1, "b": 0}, FOUR) == B
    assert affinity.choose([A, B], keys, {"a": 0, "b": 1}, FOUR) == A


def test_a_request_that_has_to_yield_goes_where_more_of_it_is_known():
    affinity = Affinity()
    affinity.served(A, _prompt("system", "one", "two"))
    affinity.served(C, _prompt("system", "one"))
    keys = _prompt("system", "one", "two")
    assert affinity.choose([A, B, C], keys, {"a": 4}, FOUR) == C


def test_new_conversations_are_spread_even_while_nothing_else_runs():
    affinity = Affinity()
    chosen: list[str] = []
    for talk in range(6):
        keys = _prompt("system", *(f"{talk} {block}" for block in range(9)))
        replica = affinity.choose([A, B, C], keys, IDLE, FOUR)
        affinity.served(replica, keys)
        chosen.append(replica.node)
    assert sorted(chosen) == ["a", "a", "b", "b", "c", "c"]


def test_models_do_not_share_what_they_know():
    affinity = Affinity()
    keys = _prompt("system", "one")
    affinity.served(B, keys)
    assert affinity.depth(Replica("other", "b", "cpu"), keys) == 0


def test_what_a_node_lost_is_forgotten_and_what_others_have_is_not():
    affinity = Affinity()
    keys = _prompt("system", "one")
    other = Replica("other", "a", "cpu")
    for replica in (A, B, other):
        affinity.served(replica, keys)
    affinity.forget("a", "m")
    assert [affinity.depth(replica, keys) for replica in (A, B, other)] == [0, 2, 2]
    affinity.forget("a")
    assert [affinity.depth(replica, keys) for replica in (A, B, other)] == [0, 2, 0]
    affinity.forget("b")
    affinity.forget("never-seen")
    assert len(affinity) == 0


def test_the_longest_unused_conversation_is_forgotten_first():
    affinity = Affinity(most_keys=4)
    old, new = _prompt("old", "x"), _prompt("new", "x")
    affinity.served(A, old)
    affinity.served(A, new)
    affinity.served(A, old)
    affinity.served(A, _prompt("third"))
    assert affinity.depth(A, old) == 2
    assert affinity.depth(A, new) == 1  # its end went first


TALKS = st.lists(st.sampled_from("pqr"), min_size=1, max_size=6)


@given(
    st.integers(1, 12),
    st.lists(
        st.one_of(
            st.tuples(st.just("served"), st.sampled_from([A, B, C]), TALKS),
            st.tuples(st.just("forget"), st.sampled_from([A, B, C]), TALKS),
        ),
        max_size=40,
    ),
)
def test_it_stays_bounded_and_never_claims_what_was_not_sent(
    most: int, steps: list[tuple[str, Replica, list[str]]]
):
    affinity = Affinity(most_keys=most)
    sent: dict[Replica, set[int]] = {A: set(), B: set(), C: set()}
    for step, replica, blocks in steps:
        keys = _prompt(*blocks)
        if step == "served":
            affinity.served(replica, keys)
            sent[replica].update(keys)
            # What was sent last is known as far as there is room.
            assert affinity.depth(replica, keys) == min(len(keys), most)
        else:
            affinity.forget(replica.node)
            sent[replica].clear()
        assert len(affinity) <= most
        for other, known in sent.items():
            assert set(keys[: affinity.depth(other, keys)]) <= known


@given(
    st.permutations([A, B, C]),
    st.fixed_dictionaries({node: st.integers(0, 9) for node in "abc"}),
    TALKS,
)
def test_a_choice_does_not_depend_on_the_order_of_the_replicas(
    replicas: list[Replica], in_flight: dict[str, int], blocks: list[str]
):
    affinity = Affinity()
    affinity.served(B, _prompt("p", "q"))
    keys = _prompt(*blocks)
    chosen = affinity.choose(replicas, keys, in_flight, FOUR)
    assert chosen == affinity.choose([A, B, C], keys, in_flight, FOUR)

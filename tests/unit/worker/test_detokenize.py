"""Text from tokens: nothing half, nothing of a stop string, nothing lost."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.detokenize import Pieces, TextStream


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({min(n, len(data)) for n in at} | {0, len(data)})
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def feed(pieces: list[bytes], *stops: str) -> tuple[list[str], TextStream]:
    """What each piece released, the flush last, and the stream."""
    stream = TextStream(Pieces(len(pieces), lambda token: pieces[token]), stops)
    texts = [stream.push(token) for token in range(len(pieces))]
    return [*texts, stream.flush()], stream


def test_whole_characters_come_at_once() -> None:
    assert feed([b"Hel", b"lo"])[0] == ["Hel", "lo", ""]


@pytest.mark.parametrize("text", ["é", "漢", "🐱", "👩\u200d🚀"])
def test_a_character_over_several_tokens_comes_whole(text: str) -> None:
    data = text.encode()
    texts, _ = feed([data[n : n + 1] for n in range(len(data))])
    assert "".join(texts) == text
    assert "\ufffd" not in "".join(texts)


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert feed([b"a\xff", b"b"])[0] == ["a\ufffd", "b", ""]


def test_an_unfinished_character_at_the_end_is_flushed_as_one_replacement() -> None:
    assert feed([b"a", "🐱".encode()[:3]])[0] == ["a", "", "\ufffd"]


def test_a_stream_may_go_on_after_a_flush() -> None:
    stream = TextStream(Pieces(2, [b"\xe6", b"x"].__getitem__), ["xy"])
    assert [stream.push(0), stream.flush(), stream.push(1), stream.flush()] == [
        "",
        "\ufffd",
        "",
        "x",
    ]


def test_text_before_a_stop_string_comes_and_nothing_after() -> None:
    texts, stream = feed([b"one", b" ST", b"OP two", b" three"], "STOP")
    assert texts == ["one", " ", "", "", ""]
    assert stream.is_stopped


def test_held_text_is_released_as_soon_as_it_cannot_match() -> None:
    assert feed([b"a ST", b"OR", b"E"], "STOP")[0] == ["a ", "STOR", "E", ""]


def test_the_end_releases_what_was_held() -> None:
    texts, stream = feed([b"a ST"], "STOP")
    assert texts == ["a ", "ST"]
    assert stream.stopped_by is None


def test_a_stop_string_that_begins_within_a_failed_match_is_found() -> None:
    texts, stream = feed([b"a", b"a", b"a", b"b"], "aab")
    assert "".join(texts) == "a"
    assert stream.is_stopped


def test_of_several_stop_strings_the_one_complete_first_counts() -> None:
    texts, stream = feed([b"xabcd"], "abcd", "bc")
    assert "".join(texts) == "xa"
    assert stream.stopped_by == "bc"


def test_an_empty_stop_string_stops_nothing() -> None:
    assert feed([b"abc"], "")[0] == ["abc", ""]


def test_a_stop_string_may_be_cut_within_a_character() -> None:
    data = "ja 漢字 nein".encode()
    texts, stream = feed([data[n : n + 1] for n in range(len(data))], "漢字")
    assert "".join(texts) == "ja "
    assert stream.is_stopped


def test_a_long_stop_string_takes_no_more_memory_than_it_is_long() -> None:
    stop = "x" * 60_000
    tracemalloc.start()
    try:
        texts, _ = feed([b"a", b"xxx", b"b"], stop)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert texts == ["a", "", "xxxb", ""]
    assert peak < 2 * len(stop)


cuts = st.lists(st.integers(0, 60), max_size=20)


@given(st.text(max_size=20), cuts)
def test_any_cut_of_any_text_gives_the_text(text: str, at: list[int]) -> None:
    texts, _ = feed(cut(text.encode(), at))
    assert "".join(texts) == text


@given(st.binary(max_size=40), cuts)
def test_any_cut_of_any_bytes_gives_what_one_decode_gives(data: bytes, at: list[int]) -> None:
    texts, _ = feed(cut(data, at))
    assert "".join(texts) == data.decode("utf-8", "replace")


@given(st.text(max_size=20), cuts)
def test_no_text_is_later_than_it_must_be(text: str, at: list[int]) -> None:
    """Without stop strings, after any bytes all complete characters are out."""
    pieces = cut(text.encode(), at)
    texts, _ = feed(pieces)
    for count in range(len(pieces) + 1):
        known = b"".join(pieces[:count]).decode("utf-8", "ignore")
        assert "".join(texts[:count]) == known


narrow = st.text(alphabet="ab漢", max_size=24)
stop_strings = st.lists(st.text(alphabet="ab漢", min_size=1, max_size=4), min_size=1, max_size=3)


@given(narrow, stop_strings, cuts)
def test_stop_strings_never_leak_however_the_text_is_cut(
    text: str, stops: list[str], at: list[int]
) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    texts, stream = feed(cut(text.encode(), at), *stops)
    assert "".join(texts) == expected
    assert stream.stopped_by == (min(ends)[2] if ends else None)
    shown = ""
    for piece in texts:
        shown += piece
        assert expected.startswith(shown)


@given(narrow, stop_strings, cuts)
def test_only_what_may_become_a_stop_string_is_held(
    text: str, stops: list[str], at: list[int]
) -> None:
    pieces = cut(text.encode(), at)
    texts, _ = feed(pieces, *stops)
    for count in range(len(pieces) + 1):
        known = b"".join(pieces[:count]).decode("utf-8", "ignore")
        if any(stop in known for stop in stops):
            break
        held = known[len("".join(texts[:count])) :]
        assert not held or any(stop.startswith(held) for stop in stops)

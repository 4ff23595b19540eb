"""What the last bytes of a stream say, however the stream was cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.outcome import Usage
from cortex_gateway.tail import MAX_HELD_BYTES, StreamTail, answer_of, is_comment, parted

ONE = b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,'
    b'"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":null}}\n\n'
)
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"gone","type":"x","code":"stalled","param":null}}\n\n'


def fed(*chunks: bytes) -> tuple[StreamTail, bytes]:
    tail = StreamTail()
    return tail, b"".join(tail.feed(chunk) for chunk in chunks)


@given(st.lists(st.integers(0, len(ONE + USAGE + DONE)), max_size=12), st.booleans())
def test_every_cut_passes_the_same_bytes_and_reads_the_same_end(
    cuts: list[int], crlf: bool
) -> None:
    whole = b": hi\n\n" + ONE + USAGE + DONE
    if crlf:
        whole = whole.replace(b"\n", b"\r\n")
    marks = [0, *sorted(cuts), len(whole)]
    chunks = [whole[a:b] for a, b in pairwise(marks)]
    tail, passed = fed(*chunks)
    assert passed + tail.flush() == whole
    assert tail.is_done
    assert tail.error_code is None
    assert tail.usage == Usage(7, 5, 3, 0)


@given(st.integers(1, len(ONE) - 1))
def test_what_is_passed_ends_with_a_whole_event(cut: int) -> None:
    tail, passed = fed(ONE, ONE[:cut])
    assert passed == ONE
    assert not tail.is_mid_event
    assert not tail.is_done


def test_an_event_too_long_to_hold_is_passed_in_pieces() -> None:
    tail, passed = fed(b"data: " + b"x" * MAX_HELD_BYTES)
    assert len(passed) == MAX_HELD_BYTES + 6
    assert tail.is_mid_event
    tail.feed(b"\n\n")
    assert not tail.is_mid_event


def test_done_counts_without_its_blank_line() -> None:
    tail, _ = fed(ONE, b"data: [DONE]")
    assert tail.is_done
    assert tail.flush() == b"data: [DONE]"


def test_done_inside_a_text_is_not_the_end() -> None:
    tail, _ = fed(b'data: {"content":"data: [DONE]"}\n\n')
    assert not tail.is_done


@pytest.mark.parametrize("end", [b"", DONE, DONE.rstrip()])
def test_an_error_event_at_the_end_gives_its_code(end: bytes) -> None:
    tail, _ = fed(ONE, ERROR, end)
    tail.flush()
    assert tail.error_code == "stalled"
    assert tail.is_done == bool(end)


def test_an_error_that_the_stream_went_on_from_is_not_how_it_ended() -> None:
    tail, _ = fed(ERROR, ONE, DONE)
    assert tail.error_code is None


def test_an_error_with_an_unknown_code_is_an_upstream_failure() -> None:
    tail, _ = fed(ONE, ERROR.replace(b"stalled", b"made_up_by_a_liar"))
    assert tail.error_code == "upstream_failed"


@pytest.mark.parametrize("end", [ONE, b"data: nonsense \xff\n\n", b": comment\n\n", b"\n\n"])
def test_without_usage_there_is_none(end: bytes) -> None:
    tail, _ = fed(ONE, end)
    assert tail.usage is None
    assert tail.error_code is None


def test_usage_is_not_read_from_what_the_model_said() -> None:
    said = rb'data: {"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":9}"}}]}' + b"\n\n"
    tail, _ = fed(said, DONE)
    assert tail.usage is None


def test_usage_of_a_whole_answer() -> None:
    assert answer_of(USAGE.removeprefix(b"data: ")).usage == Usage(7, 5, 3, 0)
    assert answer_of(b'{"usage":null}').usage is None
    assert answer_of(b"{}").usage is None


def test_an_event_is_held_for_as_long_as_it_is_told_to_be() -> None:
    tail = StreamTail(2 * MAX_HELD_BYTES)
    assert tail.feed(b"data: " + b"x" * MAX_HELD_BYTES) == b""
    assert len(tail.feed(b"\n\n")) == MAX_HELD_BYTES + 8


@pytest.mark.parametrize("events", [b": a\n\n", b":\n\n: b\n\n", b": a\r\n\r\n: b\r\n\r\n"])
def test_comments_are_signs_of_life_and_nothing_else(events: bytes) -> None:
    assert is_comment(events)
    assert not is_comment(events + ONE)
    assert not is_comment(ONE + events)


def test_an_error_event_is_parted_from_what_comes_before_it() -> None:
    before, error = parted(ONE + ERROR)
    assert before == ONE
    assert error is not None
    assert (error.code, error.message) == ("stalled", "gone")


def test_what_a_model_says_of_errors_is_none() -> None:
    said = rb'data: {"choices":[{"delta":{"content":"data: {\"error\":1}"}}]}' + b"\n\n"
    assert parted(said) == (said, None)

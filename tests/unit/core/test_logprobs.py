"""Scores of tokens in the two APIs' shapes."""

from __future__ import annotations

import math

import msgspec

from cortex_core.envelopes.logprobs import TextOffsets, chat_logprobs, completion_logprobs
from cortex_core.wire.ipc import TokenScore

EURO = "€".encode()
SCORES = [
    TokenScore(b"a", -0.5, [(b"a", -0.5), (b"b", -1.5)]),
    TokenScore(EURO[:2], -1.0, [(EURO[:2], -1.0), (b"\xff", -2.0)]),
    TokenScore(EURO[2:], -math.inf),
    TokenScore(b"cd", -0.25),
]


def test_chat_tells_each_tokens_text_and_bytes():
    told = msgspec.to_builtins(chat_logprobs(SCORES))
    assert told["refusal"] is None
    first, second, third, _ = told["content"]
    assert first == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -1.5, "bytes": [98]},
        ],
    }
    assert (second["token"], second["bytes"]) == ("\ufffd", [0xE2, 0x82])
    assert bytes(second["bytes"] + third["bytes"]).decode() == "€"


def test_what_cannot_be_is_told_as_very_unlikely():
    assert chat_logprobs(SCORES).content[2].logprob == -9999.0
    assert completion_logprobs(SCORES, TextOffsets()).token_logprobs[2] == -9999.0


def test_a_completion_tells_where_tokens_begin():
    told = completion_logprobs(SCORES, TextOffsets())
    assert told.text_offset == [0, 1, 1, 2]
    assert told.tokens == ["a", "\ufffd", "\ufffd", "cd"]
    assert told.top_logprobs[0] == {"a": -0.5, "b": -1.5}


def test_offsets_go_on_from_one_part_to_the_next():
    offsets = TextOffsets()
    parts = [completion_logprobs(SCORES[:2], offsets), completion_logprobs(SCORES[2:], offsets)]
    assert [at for part in parts for at in part.text_offset] == [0, 1, 1, 2]


def test_of_tokens_written_alike_the_likeliest_counts():
    score = TokenScore(b"\xe2", -1.0, [(b"\xe2", -1.0), (b"\xf0", -3.0)])
    assert completion_logprobs([score], TextOffsets()).top_logprobs == [{"\ufffd": -1.0}]

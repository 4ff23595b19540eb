"""The line that each request ends in."""

from __future__ import annotations

import io
import logging
import re

import msgspec
import pytest

from cortex_core.outcome import Outcome, Usage
from cortex_gateway.edge import request_id_of
from cortex_gateway.requestlog import RequestLog, line_of

OK = Outcome("ok", "r1", "a/b", "beast", 200, None, True, Usage(7, 5, 3, 1), 0.01234, 1.5)
FAILED = Outcome(
    "upstream_failed", "r2", "a/b", "beast", 502, "upstream_failed", False, None, None, 0.1
)


def test_a_line_says_all_that_the_outcome_says() -> None:
    assert line_of(OK) == (
        '"request" kind=ok request_id=r1 model=a/b node=beast status=200 streamed=True'
        " ttft_s=0.0123 total_s=1.5000 prompt=7 cached=5 completion=3 reasoning=1"
    )


def test_waits_and_retries_are_told_where_there_were_any() -> None:
    waited = msgspec.structs.replace(OK, queued_s=2.5, load_s=2.25, retries=1)
    assert " retries=1 queued_s=2.5000 load_s=2.2500 ttft_s=" in line_of(waited)


@pytest.mark.parametrize("model", ["a b", 'a"b', "a=b", "a\nlevel=ERROR", "x" * 5000])
def test_no_clients_words_can_forge_a_line(model: str) -> None:
    outcome = Outcome("rejected", "r", model, None, 404, "model_not_found", False, None, None, 0.0)
    line = line_of(outcome)
    assert "\n" not in line
    assert len(line) < 500
    assert re.search(r'model=("(?:[^"\\]|\\.)*"|[^" =]+) node=- ', line)


async def test_lines_are_written_by_level() -> None:
    stream = io.StringIO()
    log = RequestLog(stream, logging.WARNING)
    log.write(OK)
    log.write(FAILED)
    assert not stream.getvalue()
    log.flush()
    (line,) = stream.getvalue().splitlines()
    when = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.match(rf'{when} warning cortex.request "request" ', line)
    assert "code=upstream_failed" in line


def test_a_request_id_is_the_clients_only_if_sane() -> None:
    assert request_id_of([(b"x-request-id", b"abc-1")]) == b"abc-1"
    made = request_id_of([(b"x-request-id", b"a\tb")])
    assert re.fullmatch(rb"[0-9a-f]{32}", made)
    assert request_id_of([]) != request_id_of([])

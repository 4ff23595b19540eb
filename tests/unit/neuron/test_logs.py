"""A log line is one record, whatever the facts hold."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from io import StringIO

import pytest

from neuron import logs

NAME = "test.of.logs"


@pytest.fixture
def written() -> Iterator[StringIO]:
    """Where a logger of its own writes, from info upwards."""
    logger = logging.getLogger(NAME)
    stream = StringIO()
    handler = logs.handler(stream)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)


log = logs.get(NAME)


def test_a_line_has_time_level_logger_message_and_facts(written: StringIO):
    log.info("model loaded", model="cortex/tiny", load_s=1.23456, parallel=8, cause=None)
    (line,) = written.getvalue().splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info test\.of\.logs "
        r'"model loaded" model=cortex/tiny load_s=1\.235 parallel=8',
        line,
    )


def test_nothing_in_a_fact_can_begin_a_second_record(written: StringIO):
    log.error("refused", model='x"\n2026 error forged\x1b[2J', empty="")
    (line,) = written.getvalue().splitlines()
    assert r'model="x\"\n2026 error forged\x1b[2J" empty=""' in line


def test_libraries_log_in_the_same_form(written: StringIO):
    logging.getLogger(NAME).warning("odd: %s", 7)
    (line,) = written.getvalue().splitlines()
    assert line.endswith('warning test.of.logs "odd: 7"')


def test_below_the_level_nothing_is_written(written: StringIO):
    log.debug("quiet")
    assert written.getvalue().splitlines() == []


def test_an_exception_brings_its_traceback(written: StringIO):
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    lines = written.getvalue().splitlines()
    assert lines[0].endswith('error test.of.logs "failed"')
    assert lines[-1] == "ValueError: boom"

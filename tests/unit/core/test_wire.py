"""Frames and server-sent events survive being cut anywhere."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import Fault
from cortex_core.outcome import Usage
from cortex_core.wire import ipc, sse

REPORTS: list[ipc.Report] = [
    ipc.Hello(42, "0.3", "cpu"),
    ipc.LoadProgress(1, 0.5),
    ipc.LoadFailed(1, "m", Fault("gguf_corrupt", "no magic")),
    ipc.Step(
        "m",
        started=[ipc.Started(7, 10, 4)],
        deltas=[ipc.Delta(7, "héllo 🌏"), ipc.Delta(7, "hm", "reasoning")],
        finished=[ipc.Finished(7, "stop", Usage(10, 4, 3, 1))],
        failed=[ipc.Failed(8, Fault("upstream_failed", "boom"))],
    ),
    ipc.Progress(1 << 33, [ipc.ModelLoad("m", 1, 2, 3, 4, 0.25)]),
    ipc.Unloaded(2, "m"),
]


@st.composite
def _cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    edges = [0, *cuts, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.data())
def test_frames_cut_anywhere_arrive_whole_and_in_order(data: st.DataObject):
    wire = b"".join(ipc.encode(report) for report in REPORTS)
    reader: ipc.Reader[ipc.Report] = ipc.Reader(ipc.Report)
    received = [frame for chunk in data.draw(_cut(wire)) for frame in reader.feed(chunk)]
    assert received == REPORTS


def test_a_command_survives_the_wire():
    command = ipc.Generate(
        3, "m", "prompt", ipc.Sampling(temperature=0.0, seed=9), max_tokens=5, stop=("a", "b")
    )
    (received,) = ipc.Reader(ipc.Command).feed(ipc.encode(command))
    assert received == command


def test_an_impossible_length_is_refused_at_once():
    with pytest.raises(ValueError, match="exceeds"):
        list(ipc.Reader(ipc.Report).feed(b"\xff\xff\xff\xff"))


def test_a_frame_that_is_no_message_is_refused():
    with pytest.raises(msgspec.DecodeError):
        list(ipc.Reader(ipc.Report).feed(b"\x00\x00\x00\x01\xc1"))


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_cut_anywhere_with_any_line_end_are_the_same(data: st.DataObject, end: bytes):
    lines = [b": hi", b"event: state", b"data: {", b"data: }", b"", b"id: 4", b"data:x", b"", b""]
    parser = sse.Parser()
    wire = end.join([*lines, b""])
    events = [event for chunk in data.draw(_cut(wire)) for event in parser.feed(chunk)]
    assert events == [sse.Event(b"{\n}", "state"), sse.Event(b"x", "message", "4")]
    assert parser.comments == 1


@given(st.binary().filter(lambda b: b"\n" not in b and b"\r" not in b and b), st.booleans())
def test_an_encoded_event_parses_back(payload: bytes, named: bool):
    wire = sse.encode(payload, event="state" if named else None)
    (event,) = sse.Parser().feed(wire)
    assert event == sse.Event(payload, "state" if named else "message")


def test_a_keep_alive_is_life_but_no_event():
    parser = sse.Parser()
    assert parser.feed(sse.KEEP_ALIVE) == []
    assert parser.comments == 1

"""Frames to a parent that reads, reads late, or is gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cortex_core.wire.ipc import Delta, Reader, Report, Step
from neuron.worker.outbox import Outbox


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    yield ours, theirs
    ours.close()
    theirs.close()


def read(sock: socket.socket, count: int) -> list[Report]:
    reader = Reader(Report)  # pyright: ignore[reportArgumentType]
    reports: list[Report] = []
    while len(reports) < count:
        reports += reader.feed(sock.recv(1 << 16))  # pyright: ignore[reportOperatorIssue]
    return reports


def step(number: int, size: int = 10) -> Step:
    return Step("m", deltas=[Delta(number, "x" * size)])


def test_a_report_is_there_when_send_returns(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    Outbox(ours).send(step(1))
    theirs.setblocking(False)
    assert read(theirs, 1) == [step(1)]


def test_a_parent_that_reads_late_gets_all_in_order_and_holds_nobody_up(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    outbox = Outbox(ours)
    steps = [step(number, 100_000) for number in range(100)]  # more than any socket buffer
    for report in steps:
        outbox.send(report)
    assert read(theirs, 100) == steps
    outbox.drain(10)
    outbox.send(step(7))
    assert read(theirs, 1) == [step(7)]


def test_a_parent_that_is_gone_is_no_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    outbox = Outbox(ours)
    theirs.close()
    for number in range(3):
        outbox.send(step(number))
    outbox.drain(10)

"""The control plane by itself: commands on this thread, a model on one of its own."""

from __future__ import annotations

import socket

from cortex_core.wire.ipc import EngineParams, Load, LoadFailed, Reader, Report, Unloaded
from neuron.worker import llama
from neuron.worker.control import Worker
from tests.unit.worker.worker_process import TIMEOUT_S


def test_an_unload_that_finds_its_model_just_gone_is_answered() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(TIMEOUT_S)
        llama.start()
        worker = Worker(theirs, "cpu")
        with worker.loading:
            worker._handle(Load(1, "gone", "/nowhere/gone.gguf", EngineParams()))
            model = worker._models["gone"]
        model.join(TIMEOUT_S)
        model.unload(2)  # what was looked up before it had left
        theirs.shutdown(socket.SHUT_WR)
        reader = Reader(Report)  # pyright: ignore[reportArgumentType]
        reports = []
        while data := ours.recv(1 << 18):
            reports += reader.feed(data)
        assert [type(report) for report in reports] == [LoadFailed, Unloaded]
        assert reports[1] == Unloaded(2, "gone")

"""Where an engine waits for llama.cpp outside a decode its step grows older, too: a hang there is
found."""

from __future__ import annotations

from typing import Any

import pytest

from neuron.worker.host_cache import HostCache
from neuron.worker.llama import lib  # pyright: ignore[reportPrivateImportUsage]
from tests.unit.worker.test_exactness import HOST_BYTES, Served, prompt
from tests.unit.worker.worker_process import TINY


def noted(monkeypatch: pytest.MonkeyPatch, served: Served, name: str) -> list[float]:
    """How old the engine's step is in each call of this function of llama.cpp's."""
    ages: list[float] = []
    inner = getattr(lib, name)

    def noting(*args: Any) -> Any:
        ages.append(served.engine.state().step_s)
        return inner(*args)

    monkeypatch.setattr(lib, name, noting)
    return ages


def test_a_step_grows_older_while_a_sequence_is_parked_or_brought_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = Served(TINY, HostCache(HOST_BYTES), parallel=1, kv="partitioned")
    saving = noted(monkeypatch, served, "llama_state_seq_get_data")
    restoring = noted(monkeypatch, served, "llama_state_seq_set_data")
    for request, seed in enumerate((1, 2, 1)):
        served.ask(request, prompt(seed, 400))
    assert (len(saving), len(restoring)) == (2, 1)
    assert min(saving + restoring) > 0
    assert served.engine.state().step_s == 0
    served.engine.close()


def test_a_step_grows_older_while_an_engine_that_ends_parks_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = Served(TINY, HostCache(HOST_BYTES), parallel=1)
    served.ask(1, prompt(1, 400))
    saving = noted(monkeypatch, served, "llama_state_seq_get_data")
    served.engine.close()
    assert len(saving) == 1
    assert saving[0] > 0

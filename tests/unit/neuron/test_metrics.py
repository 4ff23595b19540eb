"""What a scrape of a neuron says, and that docs/metrics.md says it too."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from cortex_core.fleet.discovery import DeviceState, ModelState, NodeState, WorkerState
from cortex_core.outcome import Outcome, OutcomeKind
from cortex_core.wire import ipc
from neuron.metrics import Metrics
from neuron.streams import Tally

DOCUMENT = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text("utf-8")
CAUSE = 'the worker of cuda:0 was killed by SIGSEGV; its last words: "a\\b" | c'
WORKER = WorkerState("ready", 100, 2, CAUSE)
STATE = NodeState(
    "n",
    "boot",
    1,
    False,
    [DeviceState("cuda:0", "cuda", "GPU", WORKER, memory_total_bytes=800, memory_free_bytes=300)],
    [
        ModelState("m", "cuda:0", "ready", "/m", memory_bytes=77, running=2, waiting=3),
        ModelState("late", "cuda:0", "loading", "/l"),
    ],
)
ORDER = ("model", "device", "outcome", "code", "source", "by", "cause")
LOAD = ipc.ModelLoad(
    "m", 11, 22, 2, 3, 1.5, cells=64, cells_running=32, cells_cached=16, host_bytes=5, paused=1
)


def tally() -> Tally:
    tally = Tally()
    tally.add(ipc.Started(1, 10, 0))
    tally.add(ipc.Started(2, 10, 8, "host"))
    return tally


def supervisor() -> Any:
    """As much of one as a scrape reads."""
    return SimpleNamespace(
        device=STATE.devices[0],
        worker=WORKER,
        ends=Counter(sigsegv=2, planned=1),
        tallies={"m": tally()},
        last_report=(0.25, ipc.Progress(9000, [LOAD], True)),
    )


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(lambda: STATE, lambda: STATE, lambda: [supervisor()])


def outcome(model: str, kind: OutcomeKind = "ok", code: str | None = None) -> Outcome:
    return Outcome(kind, "r", model, "n", 200, code, True, None, 0.5, 2.0)


def samples(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and label values; a scrape sorts its labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            values = tuple(sample.labels[name] for name in ORDER if name in sample.labels)
            found.setdefault(sample.name, {})[values] = sample.value
    return found


def test_a_scrape_tells_everything_about_models_engines_workers_and_devices(metrics: Metrics):
    got = samples(metrics)
    mine = ("m", "cuda:0")
    assert got["neuron_model_ready"] == {mine: 1, ("late", "cuda:0"): 0}
    assert got["neuron_model_memory_bytes"][mine] == 77
    assert got["neuron_requests_running"][mine] == 2
    assert got["neuron_requests_waiting"][mine] == 3
    assert got["neuron_requests_paused"] == {mine: 1}
    assert got["neuron_engine_steps_total"] == {mine: 11}
    assert got["neuron_generated_tokens_total"] == {mine: 22}
    assert got["neuron_engine_step_age_seconds"] == {mine: 1.75}
    assert got["neuron_kv_cells"] == {mine: 64}
    assert got["neuron_kv_cells_used"] == {(*mine, "running"): 32, (*mine, "cached"): 16}
    assert got["neuron_host_cache_bytes"] == {mine: 5}
    assert got["neuron_prompt_tokens_total"] == {
        (*mine, "computed"): 12,
        (*mine, "live"): 0,
        (*mine, "cache"): 0,
        (*mine, "host"): 8,
    }
    assert got["neuron_worker_up"] == {("cuda:0",): 1}
    assert got["neuron_worker_restarts_total"] == {
        ("cuda:0", "sigsegv"): 2,
        ("cuda:0", "planned"): 1,
    }
    assert got["neuron_worker_last_failure_info"] == {("cuda:0", CAUSE): 1}
    assert got["neuron_worker_report_age_seconds"] == {("cuda:0",): 0.25}
    assert got["neuron_worker_resident_memory_bytes"] == {("cuda:0",): 9000}
    assert got["neuron_worker_cores_shared"] == {("cuda:0",): 1}
    assert got["neuron_device_memory_total_bytes"] == {("cuda:0",): 800}
    assert got["neuron_device_memory_free_bytes"] == {("cuda:0",): 300}


def test_outcomes_are_counted_and_timed(metrics: Metrics):
    metrics.record(outcome("m"))
    metrics.record(outcome("m", "rejected", "no_capacity"))
    got = samples(metrics)
    assert got["neuron_requests_total"] == {
        ("m", "ok", ""): 1,
        ("m", "rejected", "no_capacity"): 1,
    }
    assert got["neuron_request_ttft_seconds_sum"] == {("m",): 1.0}
    assert got["neuron_request_duration_seconds_sum"] == {("m",): 4.0}


def test_a_model_that_is_not_here_makes_no_series_of_its_own(metrics: Metrics):
    for name in ("", "gpt-9", "m'); drop table"):
        metrics.record(outcome(name, "rejected", "model_not_found"))
    assert samples(metrics)["neuron_requests_total"] == {
        ("unknown", "rejected", "model_not_found"): 3
    }


def _documented(heading: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """name → (type, labels) of the table under a heading."""
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| ", section, re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def _exported(families: list[Metric]) -> dict[str, str]:
    """name → type, as a scrape shows them, without those of the client library."""
    suffixes = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffixes.get(family.type, ""): family.type.replace("info", "gauge")
        for family in families
        if not family.name.startswith(("process_", "python_"))
    }


def test_every_metric_of_a_neuron_is_documented(metrics: Metrics):
    documented = _documented("neuron")
    exported = _exported(list(metrics.registry.collect()))
    assert {name: kind for name, (kind, _) in documented.items()} == exported


def test_the_documented_labels_are_the_real_ones(metrics: Metrics):
    metrics.record(outcome("m"))
    for family in metrics.registry.collect():
        for sample in family.samples:
            name = re.sub("_(bucket|sum|count)$", "", sample.name)
            if name.startswith("neuron_"):
                labels = tuple(label for label in sample.labels if label != "le")
                assert _documented("neuron")[name][1] == labels

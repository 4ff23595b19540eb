"""What the gateway counts, when it forgets, and that docs/metrics.md says the same."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from cortex_core.errors import Fault
from cortex_core.fleet.discovery import DeviceState, WorkerState
from cortex_core.fleet.events import Load, OrderEnded, Restart, Unload
from cortex_core.outcome import Outcome, Usage
from cortex_gateway.metrics import UNKNOWN_MODEL, FleetFacts, Metrics, NodeFacts

DOCUMENT = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text("utf-8")
HOT = DeviceState(
    "cuda:0",
    "cuda",
    "GPU",
    WorkerState("ready"),
    memory_total_bytes=100,
    memory_free_bytes=40,
    utilisation_percent=7,
    temperature_c=60,
)
SILENT = DeviceState("cpu", "cpu", "CPU", WorkerState("ready"))
ORDER = ("model", "node", "device", "outcome", "code", "stream", "kind", "reason")
FACTS = FleetFacts([NodeFacts("a", True, 3, [HOT, SILENT])], {"m": 2}, ["m", "n"])


def outcome(model: str = "m", node: str | None = "a", queued_s: float = 0.0) -> Outcome:
    usage = Usage(10, 6, 4, 1)
    return Outcome("ok", "id", model, node, 200, None, True, usage, 0.1, 0.2, queued_s=queued_s)


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample but those of times and of the process, by name and label values."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name.startswith("cortex_") and not sample.name.endswith(("_bucket", "_sum")):
                labels = [sample.labels[name] for name in ORDER if name in sample.labels]
                found[" ".join([sample.name, *labels])] = sample.value
    return found


def test_only_requests_that_waited_count_as_waiting() -> None:
    metrics = Metrics()
    metrics.record(outcome())
    assert "cortex_queue_wait_seconds_count m a" not in samples(metrics)
    metrics.record(outcome(queued_s=0.5))
    assert samples(metrics)["cortex_queue_wait_seconds_count m a"] == 1


def test_orders_count_by_what_came_of_them() -> None:
    metrics = Metrics()
    load, unload = Load(1, "m", "a", None, 0), Unload(2, "m", "a", 0, reason="ttl")
    fault = Fault("insufficient_memory", "too big")
    metrics.record_order(load, OrderEnded(1, took_s=2.0), "m")
    metrics.record_order(load, OrderEnded(1, fault), "m")
    metrics.record_order(unload, OrderEnded(2), "m")
    metrics.record_order(unload, OrderEnded(2, fault), "m")
    metrics.record_order(Restart(3, "a", "cpu"), OrderEnded(3), UNKNOWN_MODEL)
    assert samples(metrics) == {
        "cortex_model_load_seconds_count m a": 1,
        "cortex_model_load_failures_total m a insufficient_memory": 1,
        "cortex_evictions_total m a ttl": 1,
    }


def test_a_scrape_shows_the_fleet_as_it_was_looked_at() -> None:
    metrics = Metrics()
    metrics.look(FACTS)
    assert samples(metrics) == {
        "cortex_in_flight_requests a": 3,
        "cortex_node_up a": 1,
        "cortex_waiting_requests m": 2,
        "cortex_waiting_requests n": 0,
        "cortex_device_memory_total_bytes a cuda:0": 100,
        "cortex_device_memory_free_bytes a cuda:0": 40,
        "cortex_device_utilisation_percent a cuda:0": 7,
        "cortex_device_temperature_celsius a cuda:0": 60,
    }


def test_a_model_that_is_no_more_is_shown_once_more_and_then_gone() -> None:
    metrics = Metrics()
    for model in ("m", "n", UNKNOWN_MODEL):
        metrics.record(outcome(model))
    metrics.record_order(Load(1, "n", "a", None, 0), OrderEnded(1), "n")
    left = FACTS._replace(models=["m"])
    metrics.look(left)
    assert samples(metrics)["cortex_requests_total n a ok  true"] == 1
    metrics.look(left)
    found = samples(metrics)
    assert not [name for name in found if " n a" in name]
    assert found["cortex_requests_total m a ok  true"] == 1
    assert found["cortex_requests_total unknown a ok  true"] == 1


def test_a_model_that_comes_back_in_time_keeps_its_counts() -> None:
    metrics = Metrics()
    metrics.record(outcome("n"))
    for models in (["m"], ["m", "n"], ["m"]):
        metrics.look(FACTS._replace(models=models))
        assert samples(metrics)["cortex_requests_total n a ok  true"] == 1


def test_a_node_that_is_no_more_takes_its_series_along() -> None:
    metrics = Metrics()
    metrics.record(outcome("m", "a"))
    metrics.record(outcome("m", None))
    for _ in range(2):
        metrics.look(FleetFacts(models=["m"]))
    assert "cortex_node_up a" not in samples(metrics)
    assert [name for name in samples(metrics) if "requests_total" in name] == [
        "cortex_requests_total m  ok  true"
    ]


def test_a_series_that_was_forgotten_begins_anew() -> None:
    metrics = Metrics()
    metrics.record(outcome("n"))
    for _ in range(2):
        metrics.look(FACTS._replace(models=["m"]))
    metrics.record(outcome("n"))
    assert samples(metrics)["cortex_tokens_total n a prompt"] == 10


def _documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """name → (type, labels) of the gateway's table."""
    section = DOCUMENT.split("## cortex-gateway\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| ", section, re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_every_metric_is_documented_with_its_type() -> None:
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in Metrics().registry.collect()
        if family.name.startswith("cortex_")
    }
    assert {name: kind for name, (kind, _) in _documented().items()} == exported


def test_the_documented_labels_are_the_real_ones() -> None:
    metrics = Metrics()
    metrics.look(FACTS)
    metrics.record(outcome(queued_s=1.0))
    metrics.record_order(Load(1, "m", "a", None, 0), OrderEnded(1), "m")
    metrics.record_order(Load(1, "m", "a", None, 0), OrderEnded(1, Fault("x", "y")), "m")
    metrics.record_order(Unload(1, "m", "a", 0), OrderEnded(1), "m")
    seen: dict[str, tuple[str, ...]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            name = re.sub("_(bucket|sum|count)$", "", sample.name)
            if name.startswith("cortex_"):
                seen[name] = tuple(label for label in sample.labels if label != "le")
    assert seen == {name: labels for name, (_, labels) in _documented().items()}

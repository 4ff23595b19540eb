"""The neuron's Prometheus metrics: request outcomes as they are recorded, and everything else read
off the node, its workers' last reports and its stream tables when somebody asks.

No label value comes from a client: a model that is not here is "unknown", whatever it was called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)

from cortex_core.fleet.discovery import NodeState
from cortex_core.outcome import Outcome
from cortex_core.wire import ipc
from neuron.supervisor import Supervisor

__all__ = ["CONTENT_TYPE", "UNKNOWN_MODEL", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_MODEL = "unknown"

_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_CAUSE_CHARACTERS = 1000

_MODEL = ("model", "device")
Labels = tuple[str, ...]
Value = tuple[Labels, float]


class Metrics:
    """`record` counts an outcome, `render` prints everything in Prometheus' text format.

    `state` tells what the node is now, `published` what it last said it was, which costs nothing;
    `supervisors` are its devices' workers.
    """

    def __init__(
        self,
        state: Callable[[], NodeState],
        published: Callable[[], NodeState],
        supervisors: Callable[[], Sequence[Supervisor]],
    ) -> None:
        disable_created_metrics()  # a series each, that nobody asks for
        self.registry = CollectorRegistry()
        self._published = published
        self._requests = Counter(
            "neuron_requests",
            "Requests by how they ended; code is the error's, empty without one.",
            ("model", "outcome", "code"),
            registry=self.registry,
        )
        self._ttft = Histogram(
            "neuron_request_ttft_seconds",
            "From a request's head to its first text, queue and prefill included.",
            ("model",),
            buckets=_TTFT_BUCKETS,
            registry=self.registry,
        )
        self._duration = Histogram(
            "neuron_request_duration_seconds",
            "From a request's head to the last byte of its answer.",
            ("model",),
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_NodeCollector(state, supervisors))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def record(self, outcome: Outcome) -> None:
        """Count one request of a generating route."""
        is_known = any(model.id == outcome.model for model in self._published().models)
        model = outcome.model if is_known else UNKNOWN_MODEL
        self._requests.labels(model, outcome.kind, outcome.code or "").inc()
        self._duration.labels(model).observe(outcome.total_s)
        if outcome.ttft_s is not None:
            self._ttft.labels(model).observe(outcome.ttft_s)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _NodeCollector:
    """What can be read at any moment; asking wakes no worker."""

    def __init__(
        self, state: Callable[[], NodeState], supervisors: Callable[[], Sequence[Supervisor]]
    ) -> None:
        self._state = state
        self._supervisors = supervisors

    def collect(self) -> Iterator[Metric]:
        state, supervisors = self._state(), self._supervisors()
        yield from _of_models(state)
        yield from _of_engines(supervisors)
        yield from _of_prompts(supervisors)
        yield from _of_workers(supervisors)
        yield from _of_devices(state)


def _of_models(state: NodeState) -> Iterator[Metric]:
    models = state.models
    yield _gauge(
        "neuron_model_ready",
        "1 while the model takes requests, 0 while it is loading, recovering, draining or failed.",
        _MODEL,
        (((m.id, m.device), float(m.phase == "ready")) for m in models),
    )
    yield _gauge(
        "neuron_model_memory_bytes",
        "What the model's load was measured to take.",
        _MODEL,
        (((m.id, m.device), m.memory_bytes) for m in models),
    )
    yield _gauge(
        "neuron_requests_running",
        "Requests whose prompt or answer is being computed, or paused.",
        _MODEL,
        (((m.id, m.device), m.running) for m in models),
    )
    yield _gauge(
        "neuron_requests_waiting",
        "Requests that wait for a sequence.",
        _MODEL,
        (((m.id, m.device), m.waiting) for m in models),
    )


def _of_engines(supervisors: Sequence[Supervisor]) -> Iterator[Metric]:
    """From the workers' last reports; the counters begin again with each worker."""
    loads = [
        ((load.model, supervisor.device.id), load, age_s)
        for supervisor in supervisors
        for age_s, report in (supervisor.last_report,)
        for load in report.models
    ]

    def each(value: Callable[[ipc.ModelLoad], float]) -> Iterator[Value]:
        return ((labels, value(load)) for labels, load, _ in loads)

    yield _counter(
        "neuron_engine_steps", "Batches computed.", _MODEL, each(lambda load: load.steps)
    )
    yield _counter(
        "neuron_generated_tokens", "Tokens generated.", _MODEL, each(lambda load: load.generated)
    )
    yield _gauge(
        "neuron_requests_paused",
        "Of the running requests, those that compute nothing because their client does not read.",
        _MODEL,
        each(lambda load: load.paused),
    )
    yield _gauge(
        "neuron_engine_step_age_seconds",
        "How long the step in progress has been running, 0 without one; beyond "
        "engine.step_timeout_s the worker is killed.",
        _MODEL,
        ((labels, load.step_s + age_s if load.step_s else 0.0) for labels, load, age_s in loads),
    )
    yield _gauge(
        "neuron_kv_cells",
        "KV cells of the model's context, in tokens.",
        _MODEL,
        each(lambda load: load.cells),
    )
    yield _gauge(
        "neuron_kv_cells_used",
        "KV cells that running sequences hold, and those that ended ones keep as cache.",
        (*_MODEL, "by"),
        (
            ((*labels, by), cells)
            for labels, load, _ in loads
            for by, cells in (("running", load.cells_running), ("cached", load.cells_cached))
        ),
    )
    yield _gauge(
        "neuron_host_cache_bytes",
        "Sequences of the model that are parked in host memory.",
        _MODEL,
        each(lambda load: load.host_bytes),
    )


def _of_prompts(supervisors: Sequence[Supervisor]) -> Iterator[Metric]:
    yield _counter(
        "neuron_prompt_tokens",
        "Prompt tokens by where their KV came from: computed, or reused from a running sequence "
        "(live), an ended one (cache) or host memory (host).",
        (*_MODEL, "source"),
        (
            ((model, supervisor.device.id, source), tokens)
            for supervisor in supervisors
            for model, tally in supervisor.tallies.items()
            for source, tokens in (("computed", tally.computed), *tally.reused.items())
        ),
    )


def _of_workers(supervisors: Sequence[Supervisor]) -> Iterator[Metric]:
    workers = [(supervisor.device.id, supervisor) for supervisor in supervisors]
    yield _gauge(
        "neuron_worker_up",
        "1 while the device's worker process is ready.",
        ("device",),
        (((device,), float(each.worker.phase == "ready")) for device, each in workers),
    )
    yield _counter(
        "neuron_worker_restarts",
        "Worker processes that ended and were replaced, or given up, by cause: planned, a signal "
        "(sigkill), an exit code (exit_1), hung_step, hung_silent, no_hello, garbage, unstartable.",
        ("device", "cause"),
        (
            ((device, cause), count)
            for device, each in workers
            for cause, count in each.ends.items()
        ),
    )
    yield _info(
        "neuron_worker_last_failure",
        "Why the device's worker last failed, with its last lines on stderr.",
        (
            {"device": device, "cause": each.worker.cause[:_CAUSE_CHARACTERS]}
            for device, each in workers
            if each.worker.cause
        ),
    )
    yield _gauge(
        "neuron_worker_report_age_seconds",
        "How long ago the worker last reported; it does so every second.",
        ("device",),
        (((device,), each.last_report[0]) for device, each in workers),
    )
    yield _gauge(
        "neuron_worker_resident_memory_bytes",
        "Resident memory of the worker process.",
        ("device",),
        (((device,), each.last_report[1].rss_bytes) for device, each in workers),
    )
    yield _gauge(
        "neuron_worker_cores_shared",
        "1 while something else uses the CPU cores that the worker's models compute on.",
        ("device",),
        (((device,), each.last_report[1].shares_cores) for device, each in workers),
    )


def _of_devices(state: NodeState) -> Iterator[Metric]:
    for kind, text in (("total", "Memory of the device."), ("free", "Of it, free.")):
        sizes = ((d.id, getattr(d, f"memory_{kind}_bytes")) for d in state.devices)
        yield _gauge(
            f"neuron_device_memory_{kind}_bytes",
            text,
            ("device",),
            (((device,), size) for device, size in sizes if size is not None),
        )


def _gauge(name: str, text: str, labels: Labels, values: Iterable[Value]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for each, value in values:
        family.add_metric(each, value)
    return family


def _counter(name: str, text: str, labels: Labels, values: Iterable[Value]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for each, value in values:
        family.add_metric(each, value)
    return family


def _info(name: str, text: str, values: Iterable[dict[str, str]]) -> Metric:
    family = InfoMetricFamily(name, text, labels=())
    for value in values:
        family.add_metric((), value)
    return family

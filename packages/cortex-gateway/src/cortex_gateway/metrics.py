"""The gateway's Prometheus metrics: of outcomes, of orders to the neurons, of the fleet's state.

No label value comes from a client: a model nobody has is "unknown", whatever it was called. The
series of a model or node that is no more are printed once more, so that their last counts are
seen, and are gone from the next scrape on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from cortex_core.fleet.discovery import DeviceState
from cortex_core.fleet.events import Load, OrderEnded, Unload
from cortex_core.outcome import Outcome
from cortex_gateway.orders import Order

__all__ = ["CONTENT_TYPE", "NO_NODE", "UNKNOWN_MODEL", "FleetFacts", "Metrics", "NodeFacts"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_MODEL = "unknown"
NO_NODE = ""

_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_LOAD_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)


class NodeFacts(NamedTuple):
    """One node at the moment of a scrape; of a node out of reach no device is known."""

    name: str
    is_reachable: bool
    in_flight: int
    devices: Sequence[DeviceState] = ()


class FleetFacts(NamedTuple):
    """The fleet at the moment of a scrape. `waiting`: requests by model; `models`: every id that
    is or could be served."""

    nodes: Sequence[NodeFacts] = ()
    waiting: Mapping[str, int] = {}
    models: Collection[str] = ()


M = TypeVar("M", Counter, Histogram)


class _Family(Generic[M]):
    """A metric that can forget a model or a node; its first two labels are those."""

    def __init__(self, metric: M) -> None:
        self._metric = metric
        self.known: set[tuple[str, ...]] = set()

    def labels(self, *values: str) -> M:
        self.known.add(values)
        return self._metric.labels(*values)

    def forget(self, position: int, name: str) -> None:
        for values in [known for known in self.known if known[position] == name]:
            self.known.discard(values)
            self._metric.remove(*values)


class _Series:
    """The children of one label set, looked up once: `labels()` costs more than counting."""

    __slots__ = (
        "cached",
        "completion",
        "duration",
        "prompt",
        "reasoning",
        "requests",
        "ttft",
        "wait",
    )

    def __init__(self, metrics: Metrics, outcome: Outcome, model: str, node: str) -> None:
        stream = "true" if outcome.streamed else "false"
        self.requests = metrics.requests.labels(
            model, node, outcome.kind, outcome.code or "", stream
        )
        self.duration = metrics.duration.labels(model, node, stream)
        self.ttft = metrics.ttft.labels(model, node) if outcome.streamed else None
        self.wait: Histogram | None = None  # most never wait
        self.prompt = metrics.tokens.labels(model, node, "prompt")
        self.cached = metrics.tokens.labels(model, node, "cached")
        self.completion = metrics.tokens.labels(model, node, "completion")
        self.reasoning = metrics.tokens.labels(model, node, "reasoning")


class Metrics:
    """Counts as things happen, on the event loop; only `render` may run in another thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # a series each, that nobody asks for
        self.registry = CollectorRegistry()
        self._series: dict[tuple[str, str | None, str, str | None, bool], _Series] = {}
        self._vanishing: set[tuple[int, str]] = set()
        self.requests = self._counter(
            "cortex_requests",
            "Requests by how they ended; code is the error's, empty without one.",
            ("model", "node", "outcome", "code", "stream"),
        )
        self.tokens = self._counter(
            "cortex_tokens",
            "Tokens as the neurons reported them; cached is part of prompt, reasoning of "
            "completion. A stream reports only when its client asked for usage.",
            ("model", "node", "kind"),
        )
        self.ttft = self._histogram(
            "cortex_ttft_seconds",
            "From a streaming request's head to the first byte of its answer.",
            ("model", "node"),
            _TTFT_BUCKETS,
        )
        self.duration = self._histogram(
            "cortex_request_duration_seconds",
            "From a request's head to the last byte of its answer.",
            ("model", "node", "stream"),
            _DURATION_BUCKETS,
        )
        self.wait = self._histogram(
            "cortex_queue_wait_seconds",
            "Of the requests that had to wait for a replica: for how long, loads included.",
            ("model", "node"),
            _DURATION_BUCKETS,
        )
        self.loads = self._histogram(
            "cortex_model_load_seconds",
            "Loads that the gateway ordered and that succeeded: from the order to the model ready.",
            ("model", "node"),
            _LOAD_BUCKETS,
        )
        self.load_failures = self._counter(
            "cortex_model_load_failures",
            "Loads that the gateway ordered and that failed; code is the error's.",
            ("model", "node", "code"),
        )
        self.evictions = self._counter(
            "cortex_evictions",
            "Models unloaded by the gateway: to make room, because of their ttl, or as told by an "
            "operator.",
            ("model", "node", "reason"),
        )
        self._families: tuple[_Family[Counter] | _Family[Histogram], ...] = (
            self.requests,
            self.tokens,
            self.ttft,
            self.duration,
            self.wait,
            self.loads,
            self.load_failures,
            self.evictions,
        )
        self._gauges = _FleetCollector()
        self.registry.register(self._gauges)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> _Family[Counter]:
        return _Family(Counter(name, text, labels, registry=self.registry))

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> _Family[Histogram]:
        return _Family(Histogram(name, text, labels, buckets=buckets, registry=self.registry))

    def record(self, outcome: Outcome) -> None:
        """Count one request. `outcome.model` must be a model of the fleet, or UNKNOWN_MODEL."""
        key = (outcome.model, outcome.node, outcome.kind, outcome.code, outcome.streamed)
        series = self._series.get(key)
        if series is None:
            series = _Series(self, outcome, outcome.model, outcome.node or NO_NODE)
            self._series[key] = series
        series.requests.inc()
        series.duration.observe(outcome.total_s)
        if series.ttft is not None and outcome.ttft_s is not None:
            series.ttft.observe(outcome.ttft_s)
        if outcome.queued_s:
            if series.wait is None:
                series.wait = self.wait.labels(outcome.model, outcome.node or NO_NODE)
            series.wait.observe(outcome.queued_s)
        usage = outcome.usage
        if usage is not None:
            series.prompt.inc(usage.prompt)
            series.cached.inc(usage.cached)
            series.completion.inc(usage.completion)
            series.reasoning.inc(usage.reasoning)

    def record_order(self, order: Order, end: OrderEnded, model: str) -> None:
        """Count what an order has come to. `model`: the order's, or UNKNOWN_MODEL."""
        if isinstance(order, Load):
            if end.fault is None:
                self.loads.labels(model, order.node).observe(end.took_s)
            else:
                self.load_failures.labels(model, order.node, end.fault.code).inc()
        elif isinstance(order, Unload) and end.fault is None:
            self.evictions.labels(model, order.node, order.reason).inc()

    def look(self, facts: FleetFacts) -> None:
        """Take in the fleet as it is; then `render` prints it."""
        self._gauges.facts = facts
        nodes = {node.name for node in facts.nodes} | {NO_NODE}
        models = {*facts.models, UNKNOWN_MODEL}
        gone = {
            place
            for family in self._families
            for model, node, *_ in family.known
            for place, is_there in (((0, model), model in models), ((1, node), node in nodes))
            if not is_there
        }
        for position, name in gone & self._vanishing:
            for family in self._families:
                family.forget(position, name)
            self._series = {
                key: series for key, series in self._series.items() if key[position] != name
            }
        self._vanishing = gone - self._vanishing

    def render(self) -> bytes:
        """Everything in Prometheus' text format, the fleet as `look` last saw it."""
        return generate_latest(self.registry)


class _FleetCollector:
    """Gauges that are made of what is known when somebody asks; asking wakes nothing."""

    def __init__(self) -> None:
        self.facts = FleetFacts()

    def collect(self) -> Iterator[Metric]:
        facts = self.facts
        yield _gauge(
            "cortex_in_flight_requests",
            "Requests this gateway has in flight on a node.",
            ("node",),
            (((node.name,), node.in_flight) for node in facts.nodes),
        )
        yield _gauge(
            "cortex_node_up",
            "1 while the node's event stream is alive.",
            ("node",),
            (((node.name,), node.is_reachable) for node in facts.nodes),
        )
        yield _gauge(
            "cortex_waiting_requests",
            "Requests that wait for a replica of a model.",
            ("model",),
            (((model,), facts.waiting.get(model, 0)) for model in facts.models),
        )
        yield self._device(
            "cortex_device_memory_total_bytes",
            "Memory of a device, as its neuron says.",
            "memory_total_bytes",
        )
        yield self._device("cortex_device_memory_free_bytes", "Of it, free.", "memory_free_bytes")
        yield self._device(
            "cortex_device_utilisation_percent",
            "How busy a device is, as its neuron says.",
            "utilisation_percent",
        )
        yield self._device(
            "cortex_device_temperature_celsius",
            "A device's temperature, as its neuron says.",
            "temperature_c",
        )

    def _device(self, name: str, text: str, field: str) -> Metric:
        """One field of every device whose node is in reach and whose driver says it."""
        return _gauge(
            name,
            text,
            ("node", "device"),
            (
                ((node.name, device.id), getattr(device, field))
                for node in self.facts.nodes
                for device in node.devices
                if getattr(device, field) is not None
            ),
        )


def _gauge(
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for names, value in values:
        family.add_metric(names, float(value))
    return family

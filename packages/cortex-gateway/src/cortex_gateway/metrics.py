"""The gateway's Prometheus metrics. All of them derive from outcomes and from the fleet's state.

No label value comes from a client: a model nobody has is "unknown", whatever it was called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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

from cortex_core.outcome import Outcome
from cortex_gateway.fleet import Fleet

__all__ = ["CONTENT_TYPE", "NO_NODE", "UNKNOWN_MODEL", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_MODEL = "unknown"
NO_NODE = ""

_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class _Series:
    """The children of one label set, looked up once: `labels()` costs more than counting."""

    __slots__ = ("cached", "completion", "duration", "prompt", "reasoning", "requests", "ttft")

    def __init__(self, metrics: Metrics, outcome: Outcome, model: str, node: str) -> None:
        stream = "true" if outcome.streamed else "false"
        self.requests = metrics.requests.labels(
            model, node, outcome.kind, outcome.code or "", stream
        )
        self.duration = metrics.duration.labels(model, node, stream)
        self.ttft = metrics.ttft.labels(model, node) if outcome.streamed else None
        self.prompt = metrics.tokens.labels(model, node, "prompt")
        self.cached = metrics.tokens.labels(model, node, "cached")
        self.completion = metrics.tokens.labels(model, node, "completion")
        self.reasoning = metrics.tokens.labels(model, node, "reasoning")


class Metrics:
    """`record` counts an outcome, `render` prints everything in Prometheus' text format."""

    def __init__(self, fleet: Fleet) -> None:
        disable_created_metrics()  # a series each, that nobody asks for
        self.registry = CollectorRegistry()
        self._series: dict[tuple[str, str | None, str, str | None, bool], _Series] = {}
        self.requests = Counter(
            "cortex_requests",
            "Requests by how they ended; code is the error's, empty without one.",
            ("model", "node", "outcome", "code", "stream"),
            registry=self.registry,
        )
        self.tokens = Counter(
            "cortex_tokens",
            "Tokens as the neurons reported them; cached is part of prompt, reasoning of "
            "completion. A stream reports only when its client asked for usage.",
            ("model", "node", "kind"),
            registry=self.registry,
        )
        self.ttft = Histogram(
            "cortex_ttft_seconds",
            "From a streaming request's head to the first byte of its answer.",
            ("model", "node"),
            buckets=_TTFT_BUCKETS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "cortex_request_duration_seconds",
            "From a request's head to the last byte of its answer.",
            ("model", "node", "stream"),
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_FleetCollector(fleet))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

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
        usage = outcome.usage
        if usage is not None:
            series.prompt.inc(usage.prompt)
            series.cached.inc(usage.cached)
            series.completion.inc(usage.completion)
            series.reasoning.inc(usage.reasoning)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _FleetCollector:
    """Gauges that are read off the fleet when somebody asks; asking wakes nothing."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        topology = self._fleet.topology
        yield _gauge(
            "cortex_in_flight_requests",
            "Requests this gateway has in flight on a node.",
            self._fleet.in_flight.items(),
        )
        yield _gauge(
            "cortex_node_up",
            "1 while the node's event stream is alive.",
            ((name, float(topology.is_reachable(name))) for name in topology.names),
        )


def _gauge(name: str, text: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("node",))
    for node, value in values:
        family.add_metric((node,), value)
    return family

"""The dashboard and the scrape file in deploy/, against what real daemons export."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import tomllib
from collections.abc import Collection
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cortex_core.config.gateway import GatewaySection
from cortex_core.config.loader import parse_address
from cortex_core.config.neuron import NeuronConfig
from tests.e2e.client import TINY, ask, eventually, fetch, open_stream
from tests.e2e.conftest import Stack, gateway_config
from tests.e2e.promql import Matcher, Selector, selectors
from tests.processes import start_gateway, start_neuron
from tools.make_gguf import PRESETS, make_gguf

ROOT = Path(__file__).parents[2]
BOARD = json.loads((ROOT / "deploy" / "grafana" / "cortex.json").read_text("utf-8"))
JOBS = {
    job["job_name"]: job
    for job in yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ]
}
DOCUMENT = (ROOT / "docs" / "metrics.md").read_text("utf-8")
STUB_NVML = ROOT / "tests" / "unit" / "neuron" / "stub_nvml.c"
WIDTH = 24

NOT_SHOWN = {
    "neuron_requests_total": "the gateway counts the same requests, and those it refused itself",
    "neuron_request_ttft_seconds": "the gateway's is what clients see",
    "neuron_request_duration_seconds": "the gateway's is what clients see",
    "neuron_engine_steps_total": "its meaning is in the tokens and in the age of a step",
    "neuron_worker_report_age_seconds": "a silent worker is soon one that is down",
    "neuron_device_memory_total_bytes": "the gateway says it of all nodes",
    "neuron_device_memory_free_bytes": "the gateway says it of all nodes",
}
"""Documented metrics that have no panel, and why."""

Series = dict[str, list[dict[str, str]]]


class Query(NamedTuple):
    panel: str
    text: str
    legend: str

    def __str__(self) -> str:
        return f"{self.panel}: {self.legend}"


PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    Query(panel["title"], target["expr"], target["legendFormat"])
    for panel in PANELS
    for target in panel["targets"]
]
VARIABLES = {each["name"]: each for each in BOARD["templating"]["list"]}


# what the panels ask for


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver's library that tells of two GPUs."""
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", library, STUB_NVML], check=True)
    return folder


@pytest.fixture(scope="module")
def series(gpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """What Prometheus would have of a gateway and a neuron to which all has happened that is
    counted: answers, refusals, a cold load, one that failed, an eviction, a crash."""
    folder = tmp_path_factory.mktemp("models")
    cold = str(make_gguf(folder / "cold.gguf", PRESETS["tiny-llama"]))
    odd = folder / "odd.gguf"
    tiny = Path(str(files("neuron") / "assets" / "tiny.gguf"))
    odd.write_bytes(tiny.read_bytes().replace(b"qwen3", b"qwenX"))
    catalogue = folder / "models.toml"
    catalogue.write_text("".join(f'[[models]]\nid = "{id}"\n' for id in (TINY, cold, odd)))
    with (
        start_neuron(
            config=f'[models]\nlocal = ["{folder}"]\n', environment={"LD_LIBRARY_PATH": str(gpus)}
        ) as neuron,
        start_gateway(
            gateway_config(neuron.url), {"CORTEX_GATEWAY__MODELS": str(catalogue)}
        ) as gateway,
    ):
        return asyncio.run(_live(Stack(gateway, neuron), cold, str(odd)))


async def _live(stack: Stack, cold: str, odd: str) -> Series:
    await eventually(stack.is_servable, "cortex/tiny is servable")
    usage = {"stream_options": {"include_usage": True}}
    async with open_stream(stack.url, "What is the capital of France?", **usage) as stream:
        await stream.read()
    assert (await ask(stack.url, "hi", model="nobody/has-it")).status == 404
    assert (await ask(stack.url, "hi", model=cold, max_tokens=3)).status == 200
    assert (await ask(stack.url, "hi", model=odd)).status >= 400
    unloaded = await fetch(
        "POST", f"{stack.url}/admin/models/unload", {"model": cold, "wait": True}
    )
    assert unloaded.body["phase"] == "done", unloaded.body

    state = (await fetch("GET", f"{stack.neuron.url}/discovery")).body
    home = next(model["device"] for model in state["models"] if model["id"] == TINY)
    idle = next(device for device in state["devices"] if device["id"] != home)
    os.kill(idle["worker"]["pid"], signal.SIGABRT)

    async def is_told() -> bool:
        late = {"neuron_worker_last_failure_info", "neuron_kv_cells", "cortex_evictions_total"}
        return late <= (await _scraped(stack)).keys()

    await eventually(is_told, "what is known a moment later is in the metrics")
    return await _scraped(stack)


async def _scraped(stack: Stack) -> Series:
    """The samples of both, with the labels that Prometheus puts to those of a target."""
    found: Series = {}
    urls = {"cortex-gateway": stack.gateway.urls["metrics"], "neuron": stack.neuron.url}
    async with aiohttp.ClientSession() as session:
        for name, url in urls.items():
            job = JOBS[name]
            async with session.get(url + job.get("metrics_path", "/metrics")) as answer:
                text = await answer.text()
            added = {"job": name, "instance": url, **job["static_configs"][0].get("labels", {})}
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    found.setdefault(sample.name, []).append(added | sample.labels)
    return found


def missing(selector: Selector, series: Series) -> str:
    """What of a selector no scraped series has; empty when there is one that fits."""
    found = series.get(selector.metric, [])
    if not found:
        return f"no series {selector.metric}"
    wanted = {matcher.label for matcher in selector.matchers} | (selector.by or set())
    if lacking := wanted - found[0].keys():
        return f"{selector.metric} has no label {', '.join(sorted(lacking))}"
    if not any(all(m.takes(labels) for m in selector.matchers) for labels in found):
        return f"no series {selector.metric} with {selector.matchers}"
    return ""


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_every_series_that_a_panel_queries_exists(query: Query, series: Series):
    found = selectors(query.text)
    assert found
    for selector in found:
        assert not missing(selector, series), query


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_a_legend_names_labels_that_its_query_keeps(query: Query, series: Series):
    for selector in selectors(query.text):
        kept = series[selector.metric][0].keys() if selector.by is None else selector.by
        assert set(re.findall(r"\{\{(.*?)\}\}", query.legend)) <= set(kept) - {"le"}


@pytest.mark.parametrize("name", ["node", "model"])
def test_the_variables_have_values_to_choose_from(name: str, series: Series):
    match = re.fullmatch(r"label_values\((\w+), (\w+)\)", VARIABLES[name]["query"]["query"])
    assert match is not None
    assert VARIABLES[name]["definition"] == match[0]
    assert all(labels[match[2]] for labels in series[match[1]])


@pytest.mark.parametrize(
    ("query", "lack"),
    [
        ("rate(cortex_request_total[5m])", "no series cortex_request_total"),
        ("sum by (device) (cortex_node_up)", "cortex_node_up has no label device"),
        ('cortex_node_up{device="cpu"}', "cortex_node_up has no label device"),
        ('cortex_tokens_total{kind="cashed"}', "no series cortex_tokens_total with"),
    ],
)
def test_what_no_daemon_exports_would_be_found(query: str, lack: str, series: Series):
    (selector,) = selectors(query)
    assert missing(selector, series).startswith(lack)


# what the panels leave out


def test_every_documented_metric_is_shown_or_said_not_to_be():
    documented = set(re.findall(r"^\| `(\w+)` \| \w+ \|", DOCUMENT, re.MULTILINE))
    queried = {selector.metric for query in QUERIES for selector in selectors(query.text)}
    shown = {
        name if name in documented else re.sub("_(bucket|sum|count)$", "", name) for name in queried
    }
    assert shown | NOT_SHOWN.keys() == documented
    assert not shown & NOT_SHOWN.keys()


# that Grafana can show it


def test_panels_lie_side_by_side_with_a_number_and_a_title_each():
    everything = BOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    places = [panel["gridPos"] for panel in everything]
    assert all(at["x"] >= 0 and at["x"] + at["w"] <= WIDTH for at in places)
    for one, other in combinations(places, 2):
        apart = any(
            one[at] + one[size] <= other[at] or other[at] + other[size] <= one[at]
            for at, size in (("x", "w"), ("y", "h"))
        )
        assert apart, (one, other)


def test_every_panel_asks_the_prometheus_that_was_chosen():
    assert VARIABLES["datasource"]["query"] == "prometheus"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for each in [*PANELS, VARIABLES["node"], VARIABLES["model"]]:
        assert each["datasource"] == chosen


def test_queries_use_only_variables_that_there_are():
    given = {*VARIABLES, "__interval", "__rate_interval"}
    for query in QUERIES:
        assert set(re.findall(r"\$(\w+)", query.text)) <= given


def test_queries_of_a_panel_have_a_letter_each():
    for panel in PANELS:
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))


# the scrape file


def _ports(job: str) -> set[int]:
    return {
        int(target.rpartition(":")[2])
        for group in JOBS[job]["static_configs"]
        for target in group["targets"]
    }


def test_the_scrape_file_knows_where_both_listen_by_default():
    assert JOBS.keys() == {"cortex-gateway", "neuron"}
    assert _ports("cortex-gateway") == {parse_address(GatewaySection().metrics_listen)[1]}
    assert _ports("neuron") == {parse_address(NeuronConfig().listen)[1]}


def test_the_scrape_file_calls_the_nodes_what_the_example_configuration_calls_them():
    example = tomllib.loads((ROOT / "examples" / "cortex.toml").read_text("utf-8"))
    scraped = {
        group["labels"]["node"]: group["targets"] for group in JOBS["neuron"]["static_configs"]
    }
    assert scraped == {
        neuron["name"]: [neuron["endpoint"].removeprefix("http://")]
        for neuron in example["neurons"]
    }


# how queries are read


def _by(*labels: str) -> frozenset[str]:
    return frozenset(labels)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("up", [Selector("up", (), None)]),
        ('a{b="c, d}"}', [Selector("a", (Matcher("b", "=", "c, d}"),), None)]),
        (
            'a{b=~"$c", d!="\\\\d"}[5m]',
            [Selector("a", (Matcher("b", "=~", "$c"), Matcher("d", "!=", "\\d")), None)],
        ),
        ("rate(a[$__rate_interval])", [Selector("a", (), None)]),
        ("sum(a)", [Selector("a", (), _by())]),
        ("sum by (x, y) (rate(a[1m]))", [Selector("a", (), _by("x", "y"))]),
        ("max by (x) (sum by (x, y) (a))", [Selector("a", (), _by("x", "y"))]),
        (
            "histogram_quantile(0.9, sum by (le) (a_bucket))",
            [Selector("a_bucket", (), _by("le"))],
        ),
        (
            "1 - sum by (x) (a) / 1e3 * b",
            [Selector("a", (), _by("x")), Selector("b", (), None)],
        ),
        (
            "(a unless a offset $__interval) or increase(b[1m])",
            [Selector("a", (), None), Selector("a", (), None), Selector("b", (), None)],
        ),
    ],
)
def test_a_query_says_which_series_it_needs(query: str, expected: list[Selector]):
    assert selectors(query) == expected


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("sum(a", r"an end too early"),
        ("sum(a))", r"a parenthesis too many"),
        ("sum a", r"no \("),
        ("sum(a) by (x)", r"write by before the operand"),
        ('a{b="c"', r"an end too early"),
        ("a{b}", r"not label, sign, text"),
        ('a{b+"c"}', r"not label, sign, text"),
        ('rate(a[5m]){b="c"}', r"braces without a metric"),
        ("a ; b", r"cannot read"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused(query: str, why: str):
    with pytest.raises(ValueError, match=why):
        selectors(query)


@pytest.mark.parametrize(
    ("sign", "value", "taken"),
    [
        ("=", "run", {"run"}),
        ("!=", "", {"run", "runner"}),
        ("=~", "run.*", {"run", "runner"}),
        ("!~", "run", {"", "runner"}),
        ("=~", "$any", {"", "run", "runner"}),
    ],
)
def test_a_matcher_takes_what_prometheus_would(sign: str, value: str, taken: Collection[str]):
    matcher = Matcher("phase", sign, value)
    assert {word for word in ("", "run", "runner") if matcher.takes({"phase": word})} == taken
    assert matcher.takes({}) == ("" in taken and not value.startswith("$"))

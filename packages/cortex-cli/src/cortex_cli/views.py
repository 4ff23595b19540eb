"""The fleet as tables for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from cortex_cli.terminal import plain
from cortex_cli.units import UNKNOWN, count, duration, share, size
from cortex_core.envelopes.admin import (
    FleetNode,
    FleetView,
    PlacementExplained,
    RequestExplained,
    ToldLine,
)
from cortex_core.envelopes.models import ListedModel, ModelList
from cortex_core.fleet.discovery import DeviceState, ModelState
from cortex_core.outcome import Outcome

__all__ = [
    "catalogue",
    "device_table",
    "fleet_line",
    "model_table",
    "placement_lines",
    "request_lines",
    "troubles",
]

_STYLES = {
    "ready": "green",
    "loading": "yellow",
    "recovering": "yellow",
    "restarting": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "unloading": "yellow",
    "failed": "bold red",
    "unreachable": "bold red",
    "stopped": "dim",
}


def fleet_line(view: FleetView, url: str) -> Text:
    """One line: which gateway, how many nodes answer, what is in flight."""
    reachable = sum(node.reachable for node in view.nodes)
    in_flight = sum(node.in_flight for node in view.nodes)
    version = f" {view.version}" if view.version else ""
    line = Text.assemble((f"cortex{plain(version)}", "bold"), f" at {url}: ")
    if not view.nodes:
        return line.append("no neuron is configured ([[neurons]] in cortex.toml)", "yellow")
    nodes = f"{reachable} of {len(view.nodes)} nodes reachable"
    line.append(nodes, "green" if reachable == len(view.nodes) else "bold red")
    line.append(f", {in_flight} in flight")
    for model, count_ in sorted(view.waiting.items()):
        line.append(f", {count_} waiting for {plain(model)}", "yellow")
    return line


def device_table(view: FleetView) -> Table:
    """A row per device; a node that does not answer has one row."""
    table = _table("node", "state", "device", "hardware", "memory used", "busy", "in flight")
    _right(table, 4)
    _may_fold(table, 3)
    for node in view.nodes:
        for index, cells in enumerate(_device_rows(node)):
            mine = index == 0
            name = Text(plain(node.name), "bold") if mine else Text()
            table.add_row(name, *cells, str(node.in_flight) if mine else "")
    return table


def _device_rows(node: FleetNode) -> Iterator[tuple[Text, ...]]:
    nothing = (Text(UNKNOWN),) * 4
    if not node.reachable or node.state is None:
        yield (_state("unreachable"), *nothing)
    elif not node.state.devices:
        yield (_state("no devices"), *nothing)
    else:
        for device in node.state.devices:
            yield _device_row(device, draining=node.drained or node.state.draining)


def _device_row(device: DeviceState, *, draining: bool) -> tuple[Text, ...]:
    used = None
    if device.memory_total_bytes is not None and device.memory_free_bytes is not None:
        used = device.memory_total_bytes - device.memory_free_bytes
    busy = device.utilisation_percent
    return (
        _state("draining" if draining else device.worker.phase),
        Text(device.id),
        Text(plain(device.name)),
        Text(share(used, device.memory_total_bytes)),
        Text(UNKNOWN if busy is None else f"{busy}%"),
    )


def model_table(view: FleetView) -> Table:
    """A row per model and device. `running` is out of the sequences that may run at once."""
    table = _table("model", "node", "device", "state", "memory", "context", "running", "waiting")
    _right(table, 4)
    _may_fold(table, 0)
    for node, model in _models(view):
        table.add_row(
            _name(model.id, "pinned" if model.id in view.pinned else ""),
            Text(plain(node.name)),
            Text(model.device),
            _phase(model) if node.reachable else _state("unreachable"),
            size(model.memory_bytes),
            count(model.context),
            f"{model.running} / {model.parallel}",
            str(model.waiting),
        )
    return table


def _phase(model: ModelState) -> Text:
    text = _state(model.phase)
    if model.progress is not None and model.phase in ("loading", "recovering"):
        text.append(f" {model.progress:.0%}")
    return text


def troubles(view: FleetView) -> list[Text]:
    """One line for each thing that is not as it should be, with its cause."""
    found: list[tuple[str, str]] = []
    for node in view.nodes:
        if not node.reachable or node.state is None:
            cause = node.cause or "not contacted yet"
            found.append((f"{node.name} at {node.endpoint}", cause))
            continue
        found += [
            (f"{device.id} on {node.name}", device.worker.cause.strip())
            for device in node.state.devices
            if device.worker.cause and device.worker.phase != "ready"
        ]
    found += [
        (f"{model.id} on {node.name}", model.fault.message)
        for node, model in _models(view)
        if model.fault is not None
    ]
    return [Text.assemble((plain(who), "bold red"), f": {plain(why)}") for who, why in found]


def _models(view: FleetView) -> list[tuple[FleetNode, ModelState]]:
    pairs = [(node, m) for node in view.nodes for m in (node.state.models if node.state else ())]
    return sorted(pairs, key=lambda pair: (pair[1].id, pair[0].name))


def catalogue(listed: ModelList) -> Table:
    """`/v1/models` as a table: a row per model and location; aliases beside their model."""
    table = _table("model", "state", "location", "context", "memory")
    _right(table, 3)
    _may_fold(table, 0)
    for entry in listed.data:
        if entry.alias_of is not None:
            continue
        name = _name(entry.id, "also " + ", ".join(entry.aliases) if entry.aliases else "")
        context = count(entry.limit.context) if entry.limit.context else UNKNOWN
        if not entry.locations:
            table.add_row(name, Text("not loaded", "dim"), _prospect(entry), context, UNKNOWN)
        for location in entry.locations:
            where = Text(plain(f"{location.node} ({location.device})"))
            memory = size(location.memory_bytes) if location.memory_bytes else UNKNOWN
            table.add_row(name, _state(location.state), where, context, memory)
            name = Text()
    return table


def _prospect(entry: ListedModel) -> Text:
    """Where a model could be loaded, and how long that may take."""
    if not entry.feasible_on:
        return Text(UNKNOWN)
    text = f"could go to {', '.join(entry.feasible_on)}"
    if entry.load_estimate_s is not None:
        text += f", in about {duration(entry.load_estimate_s)}"
    return Text(plain(text), "dim")


def placement_lines(explained: PlacementExplained) -> Iterator[Text]:
    """Where a model is or would go, each node that was considered, and what happened before."""
    name = plain(explained.model)
    if explained.ready_on:
        yield Text.assemble((name, "bold"), f" is ready on {', '.join(explained.ready_on)}")
    if explained.node is not None:
        another = "another would" if explained.ready_on else "would"
        line = Text.assemble((name, "bold"), f": {another} go to {explained.node}")
        line.append(f" ({explained.device})")
        if explained.evict:
            line.append(f", for which {plain(', '.join(explained.evict))} would leave", "yellow")
        yield line
    elif not explained.ready_on:
        yield Text.assemble((name, "bold"), (": can be loaded nowhere now", "bold red"))
    for why in explained.why:
        yield Text(f"  {plain(why)}")
    yield from _story(explained.story)


def request_lines(explained: RequestExplained) -> Iterator[Text]:
    """What a request's time and tokens were spent on, and its story."""
    outcome = explained.outcome
    if outcome is None:
        yield Text.assemble((plain(explained.id), "bold"), " has not ended yet")
    else:
        where = f" by {outcome.node} ({outcome.device})" if outcome.node else ""
        line = Text.assemble(
            (plain(explained.id), "bold"), f": {outcome.kind}, HTTP {outcome.status}{where}"
        )
        if outcome.code is not None:
            line.append(f" [{outcome.code}]", "red")
        yield line
        yield Text(f"  model {plain(outcome.model)}, tried again {outcome.retries} times")
        yield Text("  " + ", ".join(_phases(explained, outcome)))
        if outcome.usage is not None:
            usage = outcome.usage
            yield Text(
                f"  prompt {count(usage.prompt)} tokens ({count(usage.cached)} cached,"
                f" {count(usage.prompt - usage.cached)} computed),"
                f" answer {count(usage.completion)} ({count(usage.reasoning)} of reasoning)"
            )
    yield from _story(explained.story)


def _phases(explained: RequestExplained, outcome: Outcome) -> Iterator[str]:
    waited = f"waited {duration(outcome.queued_s)}"
    if outcome.load_s is not None:
        waited += f" ({duration(outcome.load_s)} of it for the load)"
    yield waited
    if explained.prefill_s is not None:
        yield f"prefill {duration(explained.prefill_s)}"
    if explained.decode_s is not None:
        yield f"decode {duration(explained.decode_s)}"
    yield f"{duration(outcome.total_s)} in all"


def _story(lines: list[ToldLine]) -> Iterator[Text]:
    for line in lines:
        yield Text(f"  {duration(line.ago_s)} ago: {plain(line.text)}", "dim")


def _name(model: str, remark: str) -> Text:
    text = Text(plain(model), "bold")
    return text.append(f" ({plain(remark)})", "not bold dim") if remark else text


def _state(word: str) -> Text:
    return Text(word, _STYLES.get(word, ""))


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=True)
    return table


def _may_fold(table: Table, index: int) -> None:
    """For a column whose text can be long; a folded number could not be read."""
    table.columns[index].no_wrap = False
    table.columns[index].min_width = 12


def _right(table: Table, first: int) -> None:
    for column in table.columns[first:]:
        column.justify = "right"

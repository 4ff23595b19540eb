"""The tables: what a person must be able to see in them."""

from __future__ import annotations

import io
from typing import Any

import msgspec
from rich.console import Console, RenderableType

from cortex_cli.views import (
    catalogue,
    device_table,
    fleet_line,
    model_table,
    placement_lines,
    request_lines,
    troubles,
)
from cortex_core.envelopes.admin import (
    FleetNode,
    FleetView,
    PlacementExplained,
    RequestExplained,
    ToldLine,
)
from cortex_core.envelopes.models import ListedLimit, ListedModel, ModelList, ModelLocation
from cortex_core.errors import Fault
from cortex_core.fleet.discovery import DeviceState, ModelState, NodeState, WorkerState
from cortex_core.outcome import Outcome, Usage

GIB = 2**30


def _shown(what: RenderableType) -> str:
    out = Console(file=io.StringIO(), width=200)
    out.print(what)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def _device(**changes: Any) -> DeviceState:
    values: dict[str, Any] = {
        "id": "cuda:0",
        "kind": "cuda",
        "name": "Fake GPU",
        "worker": WorkerState("ready", pid=7),
        "memory_total_bytes": 24 * GIB,
        "memory_free_bytes": 8 * GIB,
        "utilisation_percent": 40,
    }
    return DeviceState(**{**values, **changes})


def _model(**changes: Any) -> ModelState:
    values: dict[str, Any] = {
        "id": "org/model",
        "device": "cuda:0",
        "phase": "ready",
        "path": "/m.gguf",
        "memory_bytes": 5 * GIB,
        "context": 8192,
        "parallel": 4,
        "running": 2,
        "waiting": 1,
    }
    return ModelState(**{**values, **changes})


def _node(
    devices: list[DeviceState] | None = None,
    models: list[ModelState] | None = None,
    *,
    draining: bool = False,
) -> FleetNode:
    state = NodeState(
        "beast",
        "boot",
        1,
        draining,
        [_device()] if devices is None else devices,
        [_model()] if models is None else models,
    )
    return FleetNode("beast", "http://beast:13131", True, in_flight=3, state=state)


LOST = FleetNode("attic", "http://attic:13131", False, cause="connection refused")


def _troubles(view: FleetView) -> list[str]:
    return [line.plain for line in troubles(view)]


def _row(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def test_the_headline_counts_nodes_and_requests() -> None:
    line = _shown(fleet_line(FleetView([_node(), LOST], "0.1.0"), "http://g:1"))
    assert line == "cortex 0.1.0 at http://g:1: 1 of 2 nodes reachable, 3 in flight\n"


def test_an_empty_fleet_says_where_to_add_a_neuron() -> None:
    assert "[[neurons]]" in _shown(fleet_line(FleetView([]), "http://g:1"))


def test_a_device_shows_used_memory_and_load() -> None:
    row = _row(_shown(device_table(FleetView([_node()]))), "cuda:0")
    assert " ".join(row.split()) == "beast ready cuda:0 Fake GPU 16.0 / 24.0 GiB 40% 3"


def test_what_the_driver_does_not_say_is_a_dash_not_a_zero() -> None:
    unknown = _device(memory_free_bytes=None, utilisation_percent=None)
    row = _row(_shown(device_table(FleetView([_node([unknown])]))), "cuda:0")
    assert "\N{EN DASH} / 24.0 GiB" in row


def test_a_lost_node_shows_the_cause() -> None:
    view = FleetView([_node(), LOST])
    assert "unreachable" in _row(_shown(device_table(view)), "attic")
    assert _troubles(view) == ["attic at http://attic:13131: connection refused"]


def test_a_failed_worker_shows_its_last_words() -> None:
    dead = _device(worker=WorkerState("failed", cause="exit 134\nGGML_ASSERT failed"))
    view = FleetView([_node([dead])])
    assert "failed" in _row(_shown(device_table(view)), "cuda:0")
    assert _troubles(view) == ["cuda:0 on beast: exit 134\nGGML_ASSERT failed"]


def test_a_worker_that_came_back_is_no_trouble() -> None:
    back = _device(worker=WorkerState("ready", restarts=1, cause="exit 134"))
    assert _troubles(FleetView([_node([back])])) == []


def test_a_draining_node_is_shown_as_draining() -> None:
    assert "draining" in _shown(device_table(FleetView([_node(draining=True)])))


def test_a_model_shows_its_seats_and_queue() -> None:
    row = _row(_shown(model_table(FleetView([_node()]))), "org/model")
    assert " ".join(row.split()) == "org/model beast cuda:0 ready 5.0 GiB 8,192 2 / 4 1"


def test_a_loading_model_shows_its_progress() -> None:
    loading = _model(phase="loading", progress=0.42)
    assert "loading 42%" in _shown(model_table(FleetView([_node(models=[loading])])))


def test_a_failed_model_shows_its_fault() -> None:
    failed = _model(phase="failed", fault=Fault("gguf_corrupt", "bad magic"))
    assert _troubles(FleetView([_node(models=[failed])])) == ["org/model on beast: bad magic"]


def test_control_codes_from_a_server_are_not_printed() -> None:
    evil = _model(id="a\x1b[31mb")
    assert "\x1b" not in _shown(model_table(FleetView([_node(models=[evil])])))


def test_markup_from_a_server_is_text() -> None:
    assert "[bold]x" in _shown(model_table(FleetView([_node(models=[_model(id="[bold]x")])])))


def test_the_catalogue_lists_every_location() -> None:
    entry = ListedModel(
        "org/model",
        True,
        [
            ModelLocation("beast", "cuda:0", "ready", 5 * GIB),
            ModelLocation("attic", "cpu", "unreachable", 0),
        ],
        ListedLimit(8192),
    )
    shown = _shown(catalogue(ModelList([entry])))
    row = _row(shown, "beast")
    assert " ".join(row.split()) == "org/model ready beast (cuda:0) 8,192 5.0 GiB"
    assert "unreachable" in _row(shown, "attic")


def test_a_model_that_is_not_loaded_shows_where_it_could_go() -> None:
    entry = ListedModel("m", False, [], ListedLimit(0), feasible_on=["beast"], load_estimate_s=12.0)
    row = _row(_shown(catalogue(ModelList([entry]))), "not loaded")
    assert "could go to beast, in about 12.0 s" in row


def test_an_alias_is_shown_beside_its_model_and_has_no_row() -> None:
    entry = ListedModel("org/model", False, [], ListedLimit(0), aliases=["best"])
    alias = ListedModel("best", False, [], ListedLimit(0), alias_of="org/model")
    shown = _shown(catalogue(ModelList([entry, alias])))
    assert "org/model (also best)" in shown
    assert len(shown.splitlines()) == 2


def test_a_drained_node_is_shown_as_draining_before_it_says_so_itself() -> None:
    node = msgspec.structs.replace(_node(), drained=True)
    assert "draining" in _shown(device_table(FleetView([node])))


def test_a_pinned_model_is_marked() -> None:
    assert "org/model (pinned)" in _shown(model_table(FleetView([_node()], pinned=["org/model"])))


def test_the_headline_says_who_is_waited_for() -> None:
    view = FleetView([_node()], waiting={"org/big": 12})
    assert "12 waiting for org/big" in _shown(fleet_line(view, "http://g:1"))


def _placed(**changes: Any) -> str:
    values: dict[str, Any] = {
        "model": "m",
        "ready_on": [],
        "node": "beast",
        "device": "cuda:0",
        "evict": ["old"],
        "why": ["beast cuda:0: fits after old has left"],
        "story": [ToldLine(61.0, "loaded")],
    }
    lines = placement_lines(PlacementExplained(**{**values, **changes}))
    return "\n".join(line.plain for line in lines)


def test_a_placement_names_the_node_the_victims_and_the_reasons() -> None:
    assert _placed() == (
        "m: would go to beast (cuda:0), for which old would leave\n"
        "  beast cuda:0: fits after old has left\n"
        "  61.0 s ago: loaded"
    )


def test_a_placement_of_what_is_there_says_so_first() -> None:
    shown = _placed(ready_on=["attic"], evict=[])
    assert shown.startswith("m is ready on attic\nm: another would go to beast (cuda:0)\n")


def test_a_placement_that_is_none_says_so() -> None:
    assert _placed(node=None, device=None, evict=[]).startswith("m: can be loaded nowhere now\n")


def _told(outcome: Outcome | None) -> str:
    explained = RequestExplained("id", outcome, 0.5, 2.0, 4, [ToldLine(3.0, "sent to beast")])
    return "\n".join(line.plain for line in request_lines(explained))


def test_a_request_says_what_its_time_and_tokens_went_to() -> None:
    usage = Usage(10, 6, 4, 1)
    outcome = Outcome(
        "ok", "id", "m", "beast", 200, None, True, usage, 2.0, 4.0, "cuda:0", 1.5, 1.0, 1
    )
    assert _told(outcome) == (
        "id: ok, HTTP 200 by beast (cuda:0)\n"
        "  model m, tried again 1 times\n"
        "  waited 1.5 s (1.0 s of it for the load), prefill 500 ms, decode 2.0 s, 4.0 s in all\n"
        "  prompt 10 tokens (6 cached, 4 computed), answer 4 (1 of reasoning)\n"
        "  3.0 s ago: sent to beast"
    )


def test_a_request_that_still_runs_is_told_so_far() -> None:
    assert _told(None) == "id has not ended yet\n  3.0 s ago: sent to beast"

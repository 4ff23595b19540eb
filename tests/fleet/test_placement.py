"""Where models go, what stays, and what the catalogue says to clients, with a whole fleet."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.fleet.conftest import Rig, eventually, running_rig
from tests.fleet.scripted_neuron import ScriptedNeuron
from tests.fleet.shelf import ROOM_BYTES

AT_ONCE = {"min_residency_s": 0}


async def listed(rig: Rig) -> dict[str, dict[str, Any]]:
    reply = await rig.ask("GET", "/v1/models")
    return {entry["id"]: entry for entry in json.loads(reply.body)["data"]}


async def test_a_model_goes_where_there_is_room(tmp_path: Path) -> None:
    models = '[[models]]\nid = "new"\n'
    async with (
        ScriptedNeuron("a", "old", sizes={"new": ROOM_BYTES}) as a,
        ScriptedNeuron("b", sizes={"new": ROOM_BYTES}) as b,
        running_rig(tmp_path, [a, b], models, eviction=AT_ONCE) as rig,
    ):
        assert (await rig.chat("new")).headers["x-cortex-node"] == "b"
        assert a.shelf.said == []


async def test_a_model_goes_where_it_is_pinned_and_is_loaded_without_a_request(
    tmp_path: Path,
) -> None:
    models = '[[models]]\nid = "new"\npinned_on = ["b"]\n'
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        ScriptedNeuron("b", sizes={"new": 100}) as b,
        running_rig(tmp_path, [a, b], models) as rig,
    ):

        async def is_there() -> bool:
            return (await listed(rig))["new"]["loaded"]

        await eventually(is_there)
        assert (a.shelf.said, b.shelf.said) == ([], [("load", "new")])


async def test_the_load_says_what_the_catalogue_says(tmp_path: Path) -> None:
    models = (
        '[[models]]\nid = "new"\ncontext = 512\nparallel = 2\nsource = "mirror"\n'
        "[models.sampling]\ntemperature = 0.1\n"
    )
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], models) as rig,
    ):
        assert (await rig.chat("new")).status == 200
        (load,) = (call.json for call in a.orders if call.path == "/models/load")
        assert load == {
            "model": "new",
            "device": "cpu",
            "context": 512,
            "parallel": 2,
            "source": "mirror",
            "sampling": {"temperature": 0.1},
            "if_holdings": 0,
        }


async def test_an_operators_pin_keeps_a_model_from_making_room(tmp_path: Path) -> None:
    models = '[[models]]\nid = "new"\n'
    async with (
        ScriptedNeuron("a", "old", sizes={"new": ROOM_BYTES}) as a,
        running_rig(tmp_path, [a], models, eviction=AT_ONCE) as rig,
    ):
        await rig.until_reachable("a")
        await rig.ask("POST", "/admin/models/pin", {"model": "old"})
        assert (await rig.chat("new")).status == 503
        await rig.ask("POST", "/admin/models/unpin", {"model": "old"})
        assert (await rig.chat("new")).status == 200


async def test_a_model_whose_time_is_up_is_unloaded(tmp_path: Path) -> None:
    models = '[[models]]\nid = "new"\nttl_s = 0.2\n'
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], models) as rig,
    ):
        assert (await rig.chat("new")).status == 200

        async def is_gone() -> bool:
            return a.shelf.said == [("load", "new"), ("unload", "new")]

        await eventually(is_gone)

        async def is_counted() -> bool:
            name = 'cortex_evictions_total{model="new",node="a",reason="ttl"}'
            return (await rig.metrics()).get(name) == 1

        await eventually(is_counted)


async def test_a_drained_node_gets_no_models(tmp_path: Path) -> None:
    models = '[[models]]\nid = "new"\n'
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        ScriptedNeuron("b", sizes={"new": 100}) as b,
        running_rig(tmp_path, [a, b], models) as rig,
    ):
        await rig.ask("POST", "/admin/nodes/a/drain")
        assert (await rig.chat("new")).headers["x-cortex-node"] == "b"


async def test_a_worker_that_has_loaded_often_is_restarted_once_it_is_empty(
    tmp_path: Path,
) -> None:
    models = '[[models]]\nid = "new"\n'
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], models, eviction={"defrag_after_cycles": 2}) as rig,
    ):
        for _ in range(2):
            assert (await rig.chat("new")).status == 200
            order = {"model": "new", "wait": True}
            assert (await rig.ask("POST", "/admin/models/unload", order)).status == 200

        async def is_restarted() -> bool:
            return ("restart", "cpu") in a.shelf.said

        await eventually(is_restarted)


async def test_what_was_measured_outlives_the_gateway(tmp_path: Path) -> None:
    models = '[[models]]\nid = "new"\n'
    settings = {"state_dir": str(tmp_path / "state")}
    async with ScriptedNeuron("a", sizes={"new": 100}) as a:
        async with running_rig(tmp_path, [a], models, **settings) as rig:
            assert (await rig.chat("new")).status == 200
            order = {"model": "new", "wait": True}
            assert (await rig.ask("POST", "/admin/models/unload", order)).status == 200
        async with running_rig(tmp_path, [a], models, **settings) as rig:

            async def is_known() -> bool:
                return (await listed(rig))["new"]["load_estimate_s"] == 0.5

            await eventually(is_known)


async def test_models_lists_what_could_be_served_with_all_that_the_catalogue_says(
    tmp_path: Path,
) -> None:
    models = """
[[models]]
id = "new"
capabilities = ["chat", "tools"]
limit = { context = 4096, output = 512 }
cost = { input = 1.5, output = 2.0 }
[aliases]
best = "new"
other = "held"
"""
    async with (
        ScriptedNeuron("a", "held", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], models) as rig,
    ):

        async def is_surveyed() -> bool:
            return (await listed(rig))["new"]["feasible_on"] == ["a"]

        await eventually(is_surveyed)
        found = await listed(rig)
        assert list(found) == ["best", "held", "new", "other"]
        new = found["new"]
        assert (new["loaded"], new["locations"]) == (False, [])
        assert new["load_estimate_s"] > 0
        assert new["limit"] == {"context": 4096, "output": 512}
        assert new["cost"] == {"input": 1.5, "output": 2.0, "cache_read": 0.0}
        assert new["capabilities"] == ["chat", "tools"]
        assert new["aliases"] == ["best"]
        assert found["best"] == new | {"id": "best", "alias_of": "new"}
        assert found["held"]["cost"] is None
        assert found["other"]["loaded"] is True
        assert (await rig.chat("best")).status == 200
        new = (await listed(rig))["new"]
        assert (new["loaded"], new["feasible_on"]) == (True, ["a"])
        one = json.loads((await rig.ask("GET", "/v1/models/best")).body)
        assert one["alias_of"] == "new"


async def test_an_alias_is_counted_as_the_model_it_stands_for(tmp_path: Path) -> None:
    models = '[[models]]\nid = "new"\n[aliases]\nbest = "new"\n'
    async with ScriptedNeuron("a", "new") as a, running_rig(tmp_path, [a], models) as rig:
        assert (await rig.chat("best")).status == 200
        metrics = await rig.metrics()
        assert [name for name in metrics if "requests_total" in name and "best" in name] == []
        labels = 'code="",model="new",node="a",outcome="ok",stream="false"'
        assert metrics[f"cortex_requests_total{{{labels}}}"] == 1


async def test_two_gateways_load_a_model_on_a_node_once(tmp_path: Path) -> None:
    models = '[[models]]\nid = "new"\n'
    (tmp_path / "second").mkdir()
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], models) as first,
        running_rig(tmp_path / "second", [a], models) as second,
    ):
        for rig in (first, second):
            await rig.until_reachable("a")
        chats = [asyncio.create_task(rig.chat("new")) for rig in (first, second) * 5]
        assert {(await chat).status for chat in chats} == {200}
        assert [model.id for model in a.state.models] == ["new"]
        assert a.shelf.operations.keys() == {"load-1"}

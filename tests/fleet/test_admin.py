"""`/admin/*`: orders reach the right neuron, and its answers come back."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from cortex_core.errors import Fault
from tests.fleet.conftest import Rig, config_of, eventually, running_rig, spawn_gateway
from tests.fleet.scripted_neuron import Call, ScriptedNeuron, chunks_of, completion
from tests.fleet.shelf import ROOM_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="module")


def error_of(body: bytes) -> dict[str, Any]:
    return json.loads(body)["error"]


async def test_the_fleet_is_shown_as_it_is_known(rig: Rig) -> None:
    a = (await rig.fleet())["a"]
    assert a["endpoint"] == rig.a.endpoint
    assert (a["reachable"], a["cause"], a["in_flight"]) == (True, None, 0)
    assert [model["id"] for model in a["state"]["models"]] == ["m", "only/a"]
    assert a["state"]["devices"][0]["worker"]["phase"] == "ready"


async def test_a_load_goes_to_the_named_node_with_its_options(rig: Rig) -> None:
    for neuron in rig.neurons.values():
        neuron.shelf.sizes["new"] = 10
    order = {"model": "new", "node": "b", "context": 512, "sampling": {"top_k": 3}, "wait": True}
    reply = await rig.ask("POST", "/admin/models/load", order)
    loaded = json.loads(reply.body)
    assert (reply.status, reply.headers["x-cortex-node"]) == (200, "b")
    assert (loaded["phase"], loaded["node"], loaded["model"]) == ("done", "b", "new")
    assert (loaded["result"]["id"], loaded["result"]["context"]) == ("new", 512)
    (call,) = (call for call in rig.b.orders if call.path == "/models/load")
    assert (call.json["context"], call.json["sampling"]) == (512, {"top_k": 3})
    assert rig.a.shelf.said == []


async def test_a_load_without_a_node_goes_where_placement_says(rig: Rig) -> None:
    rig.a.shelf.sizes["new"] = ROOM_BYTES + 1
    rig.b.shelf.sizes["new"] = 10
    reply = await rig.ask("POST", "/admin/models/load", {"model": "new", "wait": True})
    assert (reply.status, json.loads(reply.body)["node"]) == (200, "b")
    assert rig.a.shelf.said == []


async def test_a_load_can_be_asked_about_until_it_is_over(rig: Rig) -> None:
    rig.b.shelf.sizes["new"] = 10
    rig.b.shelf.gate.clear()
    reply = await rig.ask("POST", "/admin/models/load", {"model": "new"})
    order = json.loads(reply.body)
    assert (reply.status, order["phase"]) == (202, "running")

    async def report() -> dict[str, Any]:
        return json.loads((await rig.ask("GET", f"/admin/operations/{order['id']}")).body)

    async def is_placed() -> bool:
        return (await report())["node"] == "b"

    await eventually(is_placed)
    rig.b.shelf.gate.set()

    async def is_done() -> bool:
        return (await report())["phase"] == "done"

    await eventually(is_done)
    assert (await report())["result"]["id"] == "new"


async def test_a_load_that_fails_says_why(rig: Rig) -> None:
    rig.b.shelf.sizes["new"] = 10
    rig.b.shelf.faults["new"] = Fault("gguf_corrupt", "bad magic")
    order = {"model": "new", "node": "b", "wait": True}
    reply = await rig.ask("POST", "/admin/models/load", order)
    assert (reply.status, error_of(reply.body)["code"]) == (503, "no_capacity")
    assert "bad magic" in error_of(reply.body)["message"]


async def test_a_file_that_no_node_can_read_is_refused_in_the_nodes_own_words(rig: Rig) -> None:
    for neuron in rig.neurons.values():
        neuron.shelf.unreadable["spoilt"] = Fault("gguf_corrupt", "bad magic")
    reply = await rig.ask("POST", "/admin/models/load", {"model": "spoilt", "wait": True})
    error = error_of(reply.body)
    assert (reply.status, error["code"], error["message"]) == (422, "gguf_corrupt", "bad magic")


async def test_a_load_of_what_is_nowhere_is_a_404(rig: Rig) -> None:
    reply = await rig.ask("POST", "/admin/models/load", {"model": "nothing", "wait": True})
    assert (reply.status, error_of(reply.body)["code"]) == (404, "model_not_found")


async def test_a_model_that_is_there_is_not_loaded_with_other_options(rig: Rig) -> None:
    order = {"model": "only/b", "context": 2048, "wait": True}
    assert (await rig.ask("POST", "/admin/models/load", order)).status == 200
    for name, value in {"context": 512, "batch": 64}.items():
        reply = await rig.ask("POST", "/admin/models/load", {"model": "only/b", name: value})
        error = error_of(reply.body)
        assert (reply.status, error["code"], error["param"]) == (409, "conflict", name)


async def test_a_load_on_a_device_is_handed_on_to_its_node(rig: Rig) -> None:
    rig.b.shelf.sizes["new"] = 10
    order = {"model": "new", "node": "b", "device": "cpu", "context": 512}
    reply = await rig.ask("POST", "/admin/models/load", order)
    assert (reply.status, reply.headers["x-cortex-node"]) == (202, "b")
    assert rig.b.orders[-1].json == {
        "model": "new",
        "device": "cpu",
        "wait": False,
        "context": 512,
    }
    reply = await rig.ask("POST", "/admin/models/load", {"model": "new", "device": "cpu"})
    assert (reply.status, error_of(reply.body)["param"]) == (400, "node")


async def test_a_load_on_a_device_needs_a_node_in_reach(rig: Rig) -> None:
    for neuron in rig.neurons.values():
        await neuron.disappear()
        await rig.until_refused(neuron.name)
    reply = await rig.ask("POST", "/admin/models/load", {"model": "new", "device": "cpu"})
    assert (reply.status, error_of(reply.body)["code"]) == (503, "node_unavailable")


async def test_an_unload_finds_the_node_that_has_the_model(rig: Rig) -> None:
    order = {"model": "only/b", "wait": True}
    reply = await rig.ask("POST", "/admin/models/unload", order)
    assert (reply.status, reply.headers["x-cortex-node"]) == (200, "b")
    assert json.loads(reply.body)["phase"] == "done"
    assert rig.b.shelf.said == [("unload", "only/b")]


async def test_an_unload_of_a_model_on_two_nodes_asks_for_a_name(rig: Rig) -> None:
    reply = await rig.ask("POST", "/admin/models/unload", {"model": "m"})
    assert (reply.status, error_of(reply.body)["param"]) == (400, "node")
    order = {"model": "m", "node": "a", "wait": True}
    reply = await rig.ask("POST", "/admin/models/unload", order)
    assert (reply.status, reply.headers["x-cortex-node"]) == (200, "a")
    assert (await rig.chat("m")).headers["x-cortex-node"] == "b"


async def test_an_unload_by_force_is_handed_on(rig: Rig) -> None:
    await rig.ask("POST", "/admin/models/unload", {"model": "only/b", "force": True})
    assert rig.b.orders[-1].json == {"model": "only/b", "force": True, "wait": False}


async def test_an_unload_of_what_nobody_has_is_a_404(rig: Rig) -> None:
    reply = await rig.ask("POST", "/admin/models/unload", {"model": "nothing"})
    assert (reply.status, error_of(reply.body)["code"]) == (404, "model_not_found")


async def test_a_drained_node_gets_nothing_new_until_it_is_undrained(rig: Rig) -> None:
    reply = await rig.ask("POST", "/admin/nodes/a/drain")
    assert json.loads(reply.body) == {
        "node": "a",
        "drained": True,
        "kept": False,
        "not_told": None,
    }
    assert rig.a.shelf.said == [("drain", "")]
    assert (await rig.fleet())["a"]["drained"] is True
    assert (await rig.chat("m")).headers["x-cortex-node"] == "b"
    await rig.ask("POST", "/admin/nodes/a/undrain")
    assert rig.a.shelf.said[-1] == ("undrain", "")
    assert (await rig.fleet())["a"]["drained"] is False
    await rig.until_version("a", rig.a.state.version)
    assert (await rig.chat("only/a")).status == 200


async def test_a_node_out_of_reach_is_drained_all_the_same(rig: Rig) -> None:
    await rig.a.disappear()
    await rig.until_refused("a")
    reply = await rig.ask("POST", "/admin/nodes/a/drain")
    assert "connection refused" in json.loads(reply.body)["not_told"]
    await rig.a.appear()
    await rig.until_reachable("a")
    assert (await rig.chat("m")).headers["x-cortex-node"] == "b"
    await rig.ask("POST", "/admin/nodes/a/undrain")


async def test_a_node_that_refuses_to_be_drained_gets_nothing_all_the_same(rig: Rig) -> None:
    rig.a.token = "changed"
    reply = await rig.ask("POST", "/admin/nodes/a/drain")
    assert json.loads(reply.body)["not_told"] == "the node answered HTTP 401"
    assert (await rig.chat("m")).headers["x-cortex-node"] == "b"
    rig.a.token = None
    await rig.ask("POST", "/admin/nodes/a/undrain")


async def test_a_pin_is_shown_until_it_is_taken_out(rig: Rig) -> None:
    async def pinned() -> list[str]:
        return json.loads((await rig.ask("GET", "/admin/fleet")).body)["pinned"]

    reply = await rig.ask("POST", "/admin/models/pin", {"model": "m"})
    assert json.loads(reply.body) == {"model": "m", "pinned": True, "kept": False}
    assert await pinned() == ["m"]
    await rig.ask("POST", "/admin/models/unpin", {"model": "m"})
    assert await pinned() == []
    reply = await rig.ask("POST", "/admin/models/pin", {"model": "nothing"})
    assert (reply.status, error_of(reply.body)["code"]) == (404, "model_not_found")


async def test_where_a_model_would_go_is_explained_without_going_there(rig: Rig) -> None:
    reply = await rig.ask("GET", "/admin/explain/placement?model=only/b")
    explained = json.loads(reply.body)
    assert explained["ready_on"] == ["b"]
    assert explained["why"]
    assert any("b" in line for line in explained["why"])
    assert not rig.a.shelf.said
    reply = await rig.ask("GET", "/admin/explain/placement")
    assert (reply.status, error_of(reply.body)["param"]) == (400, "model")


async def test_what_became_of_a_request_is_told_by_its_id(rig: Rig) -> None:
    rig.a.script = lambda call: call.stream(*chunks_of("x", usage=True))
    await rig.chat("only/a", {"x-request-id": "mine/1"}, stream=True)
    explained = json.loads((await rig.ask("GET", "/admin/explain/request/mine/1")).body)
    outcome = explained["outcome"]
    assert (outcome["kind"], outcome["node"], outcome["device"]) == ("ok", "a", "cpu")
    assert (outcome["retries"], explained["prompt_computed"]) == (0, 4)
    assert explained["prefill_s"] >= 0
    assert any("sent to a" in line["text"] for line in explained["story"])
    reply = await rig.ask("GET", "/admin/explain/request/nobodys")
    assert (reply.status, error_of(reply.body)["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/admin/models/load", "/admin/models/unload"])
async def test_an_unknown_node_is_a_404_with_the_known_ones(rig: Rig, path: str) -> None:
    reply = await rig.ask("POST", path, {"model": "m", "node": "c"})
    assert (reply.status, error_of(reply.body)["code"]) == (404, "not_found")
    assert "known nodes: a, b" in error_of(reply.body)["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "model"),
        (b'{"model":7}', "model"),
        (b'{"model":"m","node":""}', "node"),
        (b'{"model":"m","context":-1}', "context"),
        (b'{"model":"m","colour":"red"}', "colour"),
    ],
)
async def test_a_bad_order_is_named(rig: Rig, body: bytes, param: str) -> None:
    reply = await rig.ask("POST", "/admin/models/load", body)
    assert (reply.status, error_of(reply.body)["param"]) == (400, param)


async def test_an_operation_is_asked_of_its_node(rig: Rig) -> None:
    reply = await rig.ask("GET", "/admin/operations/b/op-1")
    assert (reply.status, rig.b.orders[-1].path) == (404, "/operations/op-1")
    reply = await rig.ask("GET", "/admin/operations/c/op-1")
    assert reply.status == 404


async def test_an_operation_that_nobody_knows_is_a_404(rig: Rig) -> None:
    assert (await rig.ask("GET", "/admin/operations/load-999")).status == 404


async def test_an_order_for_a_lost_node_says_why_not(rig: Rig) -> None:
    await rig.a.disappear()
    await rig.until_refused("a")
    reply = await rig.ask("POST", "/admin/models/unload", {"model": "only/a"})
    assert (reply.status, error_of(reply.body)["code"]) == (503, "node_unavailable")
    assert "connection refused" in error_of(reply.body)["message"]


async def test_administration_needs_its_token_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "admin-token").write_text("secret\n", "utf-8")
    settings = {"admin_token_file": str(tmp_path / "admin-token")}
    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a], **settings) as rig:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            reply = await rig.ask("GET", "/admin/fleet", headers=headers)
            assert (reply.status, error_of(reply.body)["code"]) == (401, "invalid_api_key")
        reply = await rig.ask("GET", "/admin/fleet", headers={"Authorization": "Bearer secret"})
        assert reply.status == 200
        assert (await rig.chat("m")).status == 200


async def test_administration_with_a_listener_of_its_own_is_nowhere_else(tmp_path: Path) -> None:
    settings = {"admin_listen": "127.0.0.1:0"}
    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a], **settings) as rig:
        assert (await rig.ask("GET", "/admin/fleet")).status == 404
        await asyncio.to_thread(rig.daemon.wait_listening, "admin")
        for path, status in (("/admin/fleet", 200), ("/health", 200), ("/v1/models", 404)):
            async with rig.client.get(rig.daemon.urls["admin"] + path) as response:
                assert response.status == status


async def test_a_web_page_elsewhere_cannot_give_orders(rig: Rig) -> None:
    """As a form of any page sends it: nothing that a browser would ask permission for."""
    headers = {"origin": "https://evil.example", "content-type": "text/plain"}
    for path in ("nodes/a/drain", "models/unload", "models/pin", "reload"):
        reply = await rig.ask("POST", f"/admin/{path}", b'{"model": "m"}', headers=headers)
        assert (reply.status, error_of(reply.body)["code"]) == (403, "forbidden")
    assert (await rig.fleet())["a"]["drained"] is False
    assert (await rig.ask("GET", "/admin/fleet", headers=headers)).status == 200


async def test_what_an_operator_said_outlives_the_gateway(tmp_path: Path) -> None:
    settings = {"state_dir": str(tmp_path / "state")}
    async with ScriptedNeuron("a", "m") as a, ScriptedNeuron("b", "m") as b:
        async with running_rig(tmp_path, [a, b], **settings) as rig:
            await rig.ask("POST", "/admin/models/pin", {"model": "m"})
            await rig.ask("POST", "/admin/nodes/a/drain")
        await a.show(draining=False)
        async with running_rig(tmp_path, [a, b], **settings) as rig:
            view = json.loads((await rig.ask("GET", "/admin/fleet")).body)
            assert view["pinned"] == ["m"]
            assert [node["drained"] for node in view["nodes"]] == [True, False]
            assert (await rig.chat("m")).headers["x-cortex-node"] == "b"


async def test_what_cannot_be_written_is_told_not_to_be_kept(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with (
        ScriptedNeuron("a", "m") as a,
        running_rig(tmp_path, [a], state_dir=str(state)) as rig,
    ):
        await rig.until_reachable("a")
        for path, body in (("models/pin", {"model": "m"}), ("nodes/a/drain", {})):
            reply = await rig.ask("POST", f"/admin/{path}", body)
            assert json.loads(reply.body)["kept"] is True
        (state / "cortex.db").unlink()
        (state / "cortex.db").mkdir()
        for path, body in (("models/unpin", {"model": "m"}), ("nodes/a/undrain", {})):
            reply = await rig.ask("POST", f"/admin/{path}", body)
            assert (reply.status, json.loads(reply.body)["kept"]) == (200, False)
        await asyncio.to_thread(rig.daemon.wait_log, "the state is not kept")


async def test_a_state_file_out_of_reach_keeps_a_gateway_from_starting_without_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "cortex.db").mkdir()
    config = tmp_path / "cortex.toml"
    config.write_text(config_of([], state_dir=str(tmp_path)), "utf-8")
    daemon = spawn_gateway(config)
    assert await asyncio.to_thread(daemon.wait, 30) == 2
    assert daemon.log.startswith("error: gateway.state_dir: cannot read ")
    assert (tmp_path / "cortex.db").is_dir()


async def test_a_gateway_that_is_stopping_takes_no_orders(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.answer(completion("late"))

    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a]) as rig:
        a.script = script
        chat = asyncio.create_task(rig.chat("m"))
        await rig.until_in_flight("a", 1)
        rig.daemon.signal(signal.SIGTERM)

        async def is_stopping() -> bool:
            return (await rig.ask("GET", "/health")).status == 503

        await eventually(is_stopping)
        for path in ("models/load", "models/unload", "models/pin", "nodes/a/drain", "reload"):
            reply = await rig.ask("POST", f"/admin/{path}", {"model": "m"})
            assert (reply.status, error_of(reply.body)["code"]) == (503, "shutting_down")
        release.set()
        assert (await chat).status == 200

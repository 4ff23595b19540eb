"""`/admin/*`: orders reach the right neuron, and its answers come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fleet.conftest import Rig

pytestmark = pytest.mark.asyncio(loop_scope="module")


def error_of(body: bytes) -> dict[str, Any]:
    return json.loads(body)["error"]


async def test_the_fleet_is_shown_as_it_is_known(rig: Rig) -> None:
    a = (await rig.fleet())["a"]
    assert a["endpoint"] == rig.a.endpoint
    assert (a["reachable"], a["cause"], a["in_flight"]) == (True, None, 0)
    assert [model["id"] for model in a["state"]["models"]] == ["m", "only/a"]
    assert a["state"]["devices"][0]["worker"]["phase"] == "ready"


async def test_a_load_goes_to_the_named_node_with_all_but_its_name(rig: Rig) -> None:
    rig.b.shelf.sizes["new"] = 10
    order = {"model": "new", "node": "b", "context": 512, "wait": True}
    reply = await rig.ask("POST", "/admin/models/load", order)
    assert reply.status == 202
    assert reply.headers["x-cortex-node"] == "b"
    call = rig.b.orders[-1]
    assert (call.method, call.path) == ("POST", "/models/load")
    assert call.json == {"model": "new", "context": 512, "wait": True}


async def test_a_load_that_several_nodes_could_take_asks_for_a_name(rig: Rig) -> None:
    reply = await rig.ask("POST", "/admin/models/load", {"model": "new"})
    assert reply.status == 400
    assert error_of(reply.body)["param"] == "node"
    assert "a, b" in error_of(reply.body)["message"]


async def test_a_load_goes_to_the_only_node_in_reach(rig: Rig) -> None:
    await rig.b.disappear()
    await rig.until_reachable("b", False)
    rig.a.shelf.sizes["new"] = 10
    reply = await rig.ask("POST", "/admin/models/load", {"model": "new"})
    assert (reply.status, reply.headers["x-cortex-node"]) == (202, "a")


async def test_an_unload_finds_the_node_that_has_the_model(rig: Rig) -> None:
    reply = await rig.ask("POST", "/admin/models/unload", {"model": "only/b"})
    assert (reply.status, reply.headers["x-cortex-node"]) == (200, "b")
    assert rig.b.orders[-1].json == {"model": "only/b"}


async def test_an_unload_of_a_model_on_two_nodes_asks_for_a_name(rig: Rig) -> None:
    reply = await rig.ask("POST", "/admin/models/unload", {"model": "m"})
    assert (reply.status, error_of(reply.body)["param"]) == (400, "node")
    reply = await rig.ask("POST", "/admin/models/unload", {"model": "m", "node": "a"})
    assert (reply.status, reply.headers["x-cortex-node"]) == (200, "a")


async def test_an_unload_of_what_nobody_has_is_a_404(rig: Rig) -> None:
    reply = await rig.ask("POST", "/admin/models/unload", {"model": "nothing"})
    assert (reply.status, error_of(reply.body)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/admin/models/load", "/admin/models/unload"])
async def test_an_unknown_node_is_a_404_with_the_known_ones(rig: Rig, path: str) -> None:
    reply = await rig.ask("POST", path, {"model": "m", "node": "c"})
    assert (reply.status, error_of(reply.body)["code"]) == (404, "not_found")
    assert "known nodes: a, b" in error_of(reply.body)["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [(b"{}", "model"), (b'{"model":7}', "model"), (b'{"model":"m","node":""}', "node")],
)
async def test_a_bad_order_is_named(rig: Rig, body: bytes, param: str) -> None:
    reply = await rig.ask("POST", "/admin/models/load", body)
    assert (reply.status, error_of(reply.body)["param"]) == (400, param)


async def test_an_operation_is_asked_of_its_node(rig: Rig) -> None:
    reply = await rig.ask("GET", "/admin/operations/b/op-1")
    assert (reply.status, rig.b.orders[-1].path) == (404, "/operations/op-1")
    reply = await rig.ask("GET", "/admin/operations/c/op-1")
    assert reply.status == 404


async def test_an_order_for_a_lost_node_says_why_not(rig: Rig) -> None:
    await rig.a.disappear()
    await rig.until_refused("a")
    reply = await rig.ask("POST", "/admin/models/unload", {"model": "only/a"})
    assert (reply.status, error_of(reply.body)["code"]) == (503, "node_unavailable")
    assert "connection refused" in error_of(reply.body)["message"]

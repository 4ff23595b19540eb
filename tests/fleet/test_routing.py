"""Where requests go, and what clients hear of nodes that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import msgspec
import pytest

from cortex_core.errors import Fault
from tests.fleet.conftest import Rig, eventually, running_rig
from tests.fleet.scripted_neuron import Call, ScriptedNeuron, completion

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_node_with_fewer_requests_in_flight_is_chosen(rig: Rig) -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.answer(completion(call.neuron.name))

    rig.a.script = rig.b.script = script
    chats = [asyncio.create_task(rig.chat()) for _ in range(10)]

    async def are_all_there() -> bool:
        return len(rig.a.calls) + len(rig.b.calls) == 10

    await eventually(are_all_there)
    assert (len(rig.a.calls), len(rig.b.calls)) == (5, 5)
    await rig.until_in_flight("a", 5)
    release.set()
    nodes = [(await chat).headers["x-cortex-node"] for chat in chats]
    assert sorted(nodes) == ["a"] * 5 + ["b"] * 5
    await rig.until_in_flight("a", 0)


async def test_a_model_goes_only_where_it_is(rig: Rig) -> None:
    for _ in range(3):
        assert (await rig.chat("only/b")).headers["x-cortex-node"] == "b"
    assert not rig.a.calls


async def test_an_unknown_model_is_refused_with_the_known_ones(rig: Rig) -> None:
    reply = await rig.chat("nobody/has-this")
    error = msgspec.json.decode(reply.body)["error"]
    assert reply.status == 404
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "known models: m, only/a, only/b" in error["message"]


async def test_models_lists_the_union_and_where_each_is(rig: Rig) -> None:
    listed = msgspec.json.decode((await rig.ask("GET", "/v1/models")).body)
    assert listed["object"] == "list"
    by_id = {entry["id"]: entry for entry in listed["data"]}
    assert list(by_id) == ["m", "only/a", "only/b"]
    here = {"device": "cpu", "state": "ready", "memory_bytes": 1000}
    assert by_id["m"]["locations"] == [{"node": "a"} | here, {"node": "b"} | here]
    assert by_id["only/a"]["loaded"] is True
    assert by_id["only/a"]["limit"] == {"context": 2048}


async def test_one_model_is_found_by_an_id_with_slashes(rig: Rig) -> None:
    entry = msgspec.json.decode((await rig.ask("GET", "/v1/models/only/a")).body)
    assert (entry["id"], entry["object"]) == ("only/a", "model")
    reply = await rig.ask("GET", "/v1/models/only/c")
    assert reply.status == 404
    assert msgspec.json.decode(reply.body)["error"]["code"] == "model_not_found"


async def test_a_lost_nodes_models_stay_listed_as_unreachable(rig: Rig) -> None:
    await rig.a.disappear()
    await rig.until_refused("a")
    entry = msgspec.json.decode((await rig.ask("GET", "/v1/models/only/a")).body)
    assert entry["loaded"] is False
    assert entry["locations"][0]["state"] == "unreachable"
    reply = await rig.chat("only/a")
    error = msgspec.json.decode(reply.body)["error"]
    assert (reply.status, error["code"]) == (503, "node_unavailable")
    assert "only on unreachable nodes: a (connection refused)" in error["message"]
    assert int(reply.headers["retry-after"]) > 0
    assert (await rig.chat("m")).headers["x-cortex-node"] == "b"


async def test_with_no_node_left_the_refusal_names_each_cause(rig: Rig) -> None:
    for neuron in rig.neurons.values():
        await neuron.disappear()
    for name in rig.neurons:
        await rig.until_refused(name)
    reply = await rig.chat("m")
    error = msgspec.json.decode(reply.body)["error"]
    assert (reply.status, error["code"]) == (503, "node_unavailable")
    for name in rig.neurons:
        assert f"{name} (connection refused)" in error["message"]
    health = await rig.ask("GET", "/health")
    assert health.status == 200
    assert msgspec.json.decode(health.body) == {
        "status": "degraded",
        "nodes": {
            "a": {"reachable": False, "cause": "connection refused"},
            "b": {"reachable": False, "cause": "connection refused"},
        },
    }


async def test_a_node_that_comes_back_is_served_again(rig: Rig) -> None:
    await rig.a.disappear()
    await rig.until_reachable("a", False)
    await rig.a.appear()
    await rig.until_reachable("a")
    assert (await rig.chat("only/a")).status == 200


async def test_a_restarted_neuron_counts_from_its_first_version_again(rig: Rig) -> None:
    await rig.a.disappear()
    rig.a.state = msgspec.structs.replace(rig.a.first_state, boot="a-boot-2", models=[])
    await rig.a.appear()
    await rig.until_version("a", 1)
    assert (await rig.fleet())["a"]["state"]["boot"] == "a-boot-2"
    assert (await rig.chat("only/a")).status == 404


async def test_a_state_that_arrives_late_changes_nothing(rig: Rig) -> None:
    newest = rig.a.state.version + 10
    await rig.a.show(version=newest)
    await rig.until_version("a", newest)
    late = msgspec.structs.replace(rig.a.state, version=newest - 1, models=[])
    await rig.a.show_raw(b"event: state\ndata: " + msgspec.json.encode(late) + b"\n\n")
    await rig.b.show()
    await rig.until_version("b", rig.b.state.version)  # sent later, so the late one was seen
    assert (await rig.fleet())["a"]["state"]["version"] == newest
    assert (await rig.chat("only/a")).status == 200


@pytest.mark.parametrize("state", [b'{"boot": 7}', b'{"name": "\xff"}', b"[" * 9999])
async def test_a_state_that_is_garbage_loses_the_node_until_it_speaks_sense(
    rig: Rig, state: bytes
) -> None:
    await rig.a.show_raw(b"event: state\ndata: " + state + b"\n\n")
    rig.daemon.wait_log('"node lost" node=a cause="it sent a state that cannot be read')
    await rig.until_reachable("a")
    assert (await rig.chat("only/a")).status == 200


async def test_an_unknown_event_and_a_comment_are_ignored(rig: Rig) -> None:
    await rig.a.show_raw(b"event: weather\ndata: rain\n\n: hm\n\n")
    await rig.a.show()
    await rig.until_version("a", rig.a.state.version)


@pytest.mark.parametrize("phase", ["loading", "recovering", "draining"])
async def test_a_model_that_is_not_ready_is_waited_for(rig: Rig, phase: str) -> None:
    ready = rig.a.state.models
    model = msgspec.structs.replace(ready[1], phase=phase)
    await rig.a.show(models=[model])
    await rig.until_version("a", rig.a.state.version)
    chat = asyncio.create_task(rig.chat("only/a"))
    await rig.until_waiting("only/a", 1)
    assert not rig.a.calls
    await rig.a.show(models=ready)
    assert (await chat).headers["x-cortex-node"] == "a"


async def test_a_model_that_has_failed_is_refused_with_its_cause(rig: Rig) -> None:
    model = msgspec.structs.replace(
        rig.a.state.models[1], phase="failed", fault=Fault("gguf_corrupt", "bad magic")
    )
    await rig.a.show(models=[model])
    await rig.until_version("a", rig.a.state.version)
    reply = await rig.chat("only/a")
    error = msgspec.json.decode(reply.body)["error"]
    assert (reply.status, error["code"]) == (503, "no_capacity")
    assert "bad magic" in error["message"]
    assert int(reply.headers["retry-after"]) > 0
    assert not rig.a.calls


async def test_a_draining_node_gets_nothing_new(rig: Rig) -> None:
    await rig.a.show(draining=True)
    await rig.until_version("a", rig.a.state.version)
    assert (await rig.chat("m")).headers["x-cortex-node"] == "b"
    assert (await rig.chat("only/a")).status == 503


async def test_a_neuron_that_falls_silent_is_lost_within_seconds(rig: Rig) -> None:
    rig.a.is_beating = False
    await rig.until_reachable("a", False)
    assert (await rig.fleet())["a"]["cause"] == "it fell silent"
    rig.a.is_beating = True
    await rig.until_reachable("a")


async def test_a_request_that_a_silent_node_never_began_to_answer_goes_to_another(
    rig: Rig,
) -> None:
    """As behind a black hole: its connection stays open, and nothing comes."""

    async def script(call: Call) -> None:
        await call.gone()

    rig.a.script = script
    chat = asyncio.create_task(rig.chat(stream=True))
    await rig.until_in_flight("a", 1)
    rig.a.is_beating = False
    reply = await chat
    assert reply.status == 200
    assert b"[DONE]" in reply.body
    assert (len(rig.a.calls), len(rig.b.calls)) == (1, 1)
    await rig.until_in_flight("a", 0)
    rig.a.is_beating = True
    await rig.until_reachable("a")


async def test_a_request_waits_for_a_silent_node_where_no_other_has_its_model(
    rig: Rig,
) -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.answer(completion("late"))

    rig.a.script = script
    await rig.b.show(models=[])
    chat = asyncio.create_task(rig.chat())
    await rig.until_in_flight("a", 1)
    rig.a.is_beating = False
    await rig.until_reachable("a", False)
    release.set()
    assert b"late" in (await chat).body
    rig.a.is_beating = True
    await rig.until_reachable("a")


async def test_a_node_whose_packets_vanish_is_given_up_on_in_time(tmp_path: Path) -> None:
    """A full backlog answers a connection attempt as a black hole does: not at all."""
    with socket.socket() as hole, contextlib.ExitStack() as stack:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(hole.getsockname())
        a = ScriptedNeuron("a", "m")
        a.port = hole.getsockname()[1]
        async with running_rig(tmp_path, [a], connect_timeout_s=0.3) as rig:

            async def is_given_up() -> bool:
                return (await rig.fleet())["a"]["cause"] == "the connection timed out"

            await eventually(is_given_up)
            assert (await rig.chat("m")).status == 503


async def test_the_first_request_after_the_start_waits_for_first_contact(tmp_path: Path) -> None:
    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a]) as rig:
        assert (await rig.chat("m")).status == 200


async def test_a_model_whose_node_has_been_away_since_the_start_is_not_called_unknown(
    tmp_path: Path,
) -> None:
    async with ScriptedNeuron("a", "m") as a, ScriptedNeuron("b", "only/b") as b:
        await b.disappear()
        async with running_rig(tmp_path, [a, b]) as rig:
            reply = await rig.chat("only/b")
            error = msgspec.json.decode(reply.body)["error"]
            assert (reply.status, error["code"]) == (503, "node_unavailable")
            assert "not heard of yet: b (connection refused)" in error["message"]
            assert int(reply.headers["retry-after"]) > 0
            await b.appear()
            await rig.until_reachable("b")
            assert (await rig.chat("only/b")).status == 200
            assert (await rig.chat("only/c")).status == 404


async def test_a_token_goes_to_the_neuron_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("right\n", "utf-8")
    async with ScriptedNeuron("a", "m") as a:
        a.token, a.token_file = "right", str(token_file)
        async with running_rig(tmp_path, [a]) as rig:
            assert (await rig.chat("m")).status == 200
            assert a.calls[0].headers["authorization"] == "Bearer right"
            a.token = "changed"
            reply = await rig.chat("m")
            error = msgspec.json.decode(reply.body)["error"]
            assert (reply.status, error["code"]) == (502, "upstream_failed")
            assert error["message"] == "the node a refused the gateway's token (HTTP 401)"
            await a.disappear()
            await a.appear()

            async def is_refused() -> bool:
                return "HTTP 401" in ((await rig.fleet())["a"]["cause"] or "")

            await eventually(is_refused)

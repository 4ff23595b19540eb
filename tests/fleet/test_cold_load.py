"""A model that nobody has loaded yet: who waits for it, who loads it, and what if that fails."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from cortex_core.errors import Fault
from tests.fleet.conftest import Reply, eventually, running_rig
from tests.fleet.scripted_neuron import Call, ScriptedNeuron, completion
from tests.fleet.shelf import ROOM_BYTES

BOTH = '[[models]]\nid = "old"\n[[models]]\nid = "new"\n'
AT_ONCE = {"min_residency_s": 0}


def error_of(reply: Reply) -> dict[str, Any]:
    return json.loads(reply.body)["error"]


async def until_said(neuron: ScriptedNeuron, *words: str) -> None:
    async def is_said() -> bool:
        return words in neuron.shelf.said

    await eventually(is_said)


async def test_ten_who_ask_at_once_cause_one_load_and_get_ten_answers(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], BOTH) as rig,
    ):
        a.shelf.gate.clear()
        chats = [asyncio.create_task(rig.chat("new")) for _ in range(10)]
        await rig.until_waiting("new", 10)
        a.shelf.gate.set()
        assert [(await chat).status for chat in chats] == [200] * 10
        assert a.shelf.said == [("load", "new")]


async def test_what_a_wait_was_made_of_is_told(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], BOTH) as rig,
    ):
        assert (await rig.chat("new", {"x-request-id": "cold"})).status == 200
        explained = json.loads((await rig.ask("GET", "/admin/explain/request/cold")).body)
        assert 0 < explained["outcome"]["load_s"] <= explained["outcome"]["queued_s"]
        metrics = await rig.metrics()
        assert metrics['cortex_model_load_seconds_count{model="new",node="a"}'] == 1
        assert metrics['cortex_queue_wait_seconds_count{model="new",node="a"}'] == 1
        assert metrics['cortex_waiting_requests{model="new"}'] == 0


async def test_the_one_who_stays_is_served_when_nine_leave(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], BOTH) as rig,
    ):
        a.shelf.gate.clear()
        chats = [asyncio.create_task(rig.chat("new")) for _ in range(10)]
        await rig.until_waiting("new", 10)
        for chat in chats[1:]:
            chat.cancel()
        await rig.until_waiting("new", 1)
        a.shelf.gate.set()
        assert (await chats[0]).status == 200
        assert a.shelf.said == [("load", "new")]
        assert len(a.calls) == 1


async def test_nothing_is_evicted_for_those_who_left(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", "old", sizes={"new": ROOM_BYTES}) as a,
        running_rig(tmp_path, [a], BOTH, eviction=AT_ONCE) as rig,
    ):
        release = asyncio.Event()

        async def script(call: Call) -> None:
            await release.wait()
            await call.answer(completion("late"))

        a.script = script
        busy = asyncio.create_task(rig.chat("old"))
        await rig.until_in_flight("a", 1)
        chats = [asyncio.create_task(rig.chat("new")) for _ in range(10)]
        await rig.until_waiting("new", 10)
        for chat in chats:
            chat.cancel()
        await rig.until_waiting("new", 0)
        release.set()
        assert (await busy).status == 200
        # The next one to come finds the old model still there, and nothing ordered.
        assert (await rig.chat("old")).status == 200
        assert a.shelf.said == []


async def test_an_idle_model_makes_room_for_one_that_is_asked_for(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", "old", sizes={"old": 1000, "new": ROOM_BYTES}) as a,
        running_rig(tmp_path, [a], BOTH, eviction=AT_ONCE) as rig,
    ):
        assert (await rig.chat("new")).status == 200
        assert a.shelf.said == [("unload", "old"), ("load", "new")]
        metrics = await rig.metrics()
        assert metrics['cortex_evictions_total{model="old",node="a",reason="room"}'] == 1
        assert (await rig.chat("old")).status == 200
        assert a.shelf.said[2:] == [("unload", "new"), ("load", "old")]


async def test_a_busy_model_is_let_finish_before_it_makes_room(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", "old", sizes={"new": ROOM_BYTES}) as a,
        running_rig(tmp_path, [a], BOTH, eviction=AT_ONCE) as rig,
    ):
        release = asyncio.Event()

        async def script(call: Call) -> None:
            if call.json["model"] == "old":
                await release.wait()
            await call.answer(completion(call.json["model"]))

        a.script = script
        busy = asyncio.create_task(rig.chat("old"))
        await rig.until_in_flight("a", 1)
        chat = asyncio.create_task(rig.chat("new"))
        await rig.until_waiting("new", 1)
        assert a.shelf.said == []
        release.set()
        assert json.loads((await busy).body)["choices"][0]["message"]["content"] == "old"
        assert (await chat).status == 200
        assert a.shelf.said == [("unload", "old"), ("load", "new")]


async def test_a_pinned_model_makes_room_for_nobody(tmp_path: Path) -> None:
    models = BOTH.replace('id = "old"', 'id = "old"\npinned = true')
    async with (
        ScriptedNeuron("a", "old", sizes={"new": ROOM_BYTES}) as a,
        running_rig(tmp_path, [a], models, eviction=AT_ONCE) as rig,
    ):
        reply = await rig.chat("new")
        assert (reply.status, error_of(reply)["code"]) == (503, "no_capacity")
        assert "old" in error_of(reply)["message"]
        assert a.shelf.said == []


async def test_a_load_that_fails_is_told_to_everybody_and_not_tried_at_once_again(
    tmp_path: Path,
) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], BOTH) as rig,
    ):
        a.shelf.faults["new"] = Fault("gguf_corrupt", "bad magic")
        a.shelf.gate.clear()
        chats = [asyncio.create_task(rig.chat("new")) for _ in range(5)]
        await rig.until_waiting("new", 5)
        a.shelf.gate.set()
        for reply in await asyncio.gather(*chats):
            assert reply.status == 503
            assert "bad magic" in error_of(reply)["message"]
        reply = await rig.chat("new")
        assert "bad magic" in error_of(reply)["message"]
        assert int(reply.headers["retry-after"]) > 0
        assert a.shelf.said == [("load", "new")]
        failures = 'cortex_model_load_failures_total{code="gguf_corrupt",model="new",node="a"}'
        assert (await rig.metrics())[failures] == 1


async def test_a_load_that_fails_on_one_node_is_tried_on_the_next(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        ScriptedNeuron("b", sizes={"new": 100}) as b,
        running_rig(tmp_path, [a, b], BOTH) as rig,
    ):
        a.shelf.faults["new"] = Fault("gguf_corrupt", "bad magic")
        assert (await rig.chat("new")).headers["x-cortex-node"] == "b"
        assert (a.shelf.said, b.shelf.said) == ([("load", "new")], [("load", "new")])


async def test_a_node_that_dies_while_it_loads_is_replaced_by_another(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        ScriptedNeuron("b", sizes={"new": 100}) as b,
        running_rig(tmp_path, [a, b], BOTH) as rig,
    ):
        a.shelf.gate.clear()
        chat = asyncio.create_task(rig.chat("new"))
        await until_said(a, "load", "new")
        await a.disappear()
        assert (await chat).headers["x-cortex-node"] == "b"


async def test_a_neuron_that_restarts_while_it_loads_is_asked_again(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], BOTH) as rig,
    ):
        a.shelf.gate.clear()
        chat = asyncio.create_task(rig.chat("new"))
        await until_said(a, "load", "new")
        await a.disappear()
        reply = await chat
        assert (reply.status, error_of(reply)["code"]) == (503, "node_unavailable")
        assert int(reply.headers["retry-after"]) > 0
        a.state = msgspec.structs.replace(a.first_state, boot="a-boot-2")
        a.shelf.gate.set()
        await a.appear()
        await rig.until_reachable("a")
        assert (await rig.chat("new")).status == 200
        assert a.shelf.said == [("load", "new")] * 2


async def test_a_load_that_hangs_is_given_up_and_the_next_node_tried(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        ScriptedNeuron("b", sizes={"new": 100}) as b,
        running_rig(tmp_path, [a, b], BOTH, load_stall_s=0.3) as rig,
    ):
        a.shelf.gate.clear()
        assert (await rig.chat("new")).headers["x-cortex-node"] == "b"
        await until_said(a, "unload", "new")


async def test_two_gateways_look_again_when_the_other_was_quicker(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], BOTH) as rig,
    ):
        await rig.until_reachable("a")
        # Another gateway loads something; of that, this one has not heard when it decides.
        a.state = msgspec.structs.replace(a.state, holdings=7)
        assert (await rig.chat("new")).status == 200
        loads = [call.json["if_holdings"] for call in a.orders if call.path == "/models/load"]
        assert loads == [0, 7]


async def test_more_than_may_wait_are_told_to_come_back(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], BOTH, max_waiting=2) as rig,
    ):
        a.shelf.gate.clear()
        chats = [asyncio.create_task(rig.chat("new")) for _ in range(2)]
        await rig.until_waiting("new", 2)
        reply = await rig.chat("new")
        assert (reply.status, error_of(reply)["code"]) == (429, "rate_limit_exceeded")
        assert int(reply.headers["retry-after"]) > 0
        a.shelf.gate.set()
        assert [(await chat).status for chat in chats] == [200, 200]


async def test_who_has_waited_long_enough_is_told_so(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], BOTH, max_wait_s=0.3) as rig,
    ):
        a.shelf.gate.clear()
        reply = await rig.chat("new")
        assert (reply.status, error_of(reply)["code"]) == (503, "model_loading")
        assert int(reply.headers["retry-after"]) > 0


async def test_a_model_that_fits_nowhere_is_refused_with_each_nodes_reason(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": ROOM_BYTES + 1}) as a,
        ScriptedNeuron("b", sizes={"new": ROOM_BYTES + 1}) as b,
        running_rig(tmp_path, [a, b], BOTH) as rig,
    ):
        reply = await rig.chat("new")
        assert (reply.status, error_of(reply)["code"]) == (503, "no_capacity")
        for name in ("a", "b"):
            assert f"{name}: " in error_of(reply)["message"]


async def test_a_listed_model_that_no_node_has_is_not_found(tmp_path: Path) -> None:
    async with ScriptedNeuron("a") as a, running_rig(tmp_path, [a], BOTH) as rig:
        reply = await rig.chat("new")
        assert (reply.status, error_of(reply)["code"]) == (404, "model_not_found")


async def test_a_name_that_only_a_client_knows_is_asked_of_no_node(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", sizes={"secret": 100}) as a,
        running_rig(tmp_path, [a], BOTH) as rig,
    ):
        reply = await rig.chat("secret")
        assert (reply.status, error_of(reply)["code"]) == (404, "model_not_found")
        assert not a.orders


async def test_probes_are_answered_while_hundreds_wait(tmp_path: Path) -> None:
    models = '[[models]]\nid = "new"\n'
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], models, max_waiting=500) as rig,
    ):
        a.shelf.gate.clear()
        chats = [asyncio.create_task(rig.chat("new")) for _ in range(300)]
        await rig.until_waiting("new", 300)
        assert (await rig.ask("GET", "/health")).status == 200
        listed = json.loads((await rig.ask("GET", "/v1/models")).body)["data"]
        assert [entry["id"] for entry in listed] == ["new"]
        a.shelf.gate.set()
        assert {(await chat).status for chat in chats} == {200}


async def test_a_client_that_leaves_while_it_waits_leaves_the_queue(
    tmp_path: Path,
) -> None:
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], BOTH) as rig,
    ):
        a.shelf.gate.clear()
        async with aiohttp.ClientSession() as client:
            body = {"model": "new", "messages": [], "stream": True}
            asking = asyncio.create_task(client.post(rig.url + "/v1/chat/completions", json=body))
            await rig.until_waiting("new", 1)
            asking.cancel()
        await rig.until_waiting("new", 0)
        await asyncio.to_thread(rig.daemon.wait_log, "kind=client_gone .*model=new")

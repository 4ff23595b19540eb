"""A client that waits for a seat: until nodes are known, for a load, in line with others."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cortex_core.errors import Fault
from cortex_core.wire.sse import KEEP_ALIVE
from tests.fleet.conftest import eventually
from tests.fleet.in_process import Desk, LateNeuron, be_impatient, running_desk
from tests.fleet.scripted_neuron import Call, ScriptedNeuron, chunks_of, completion
from tests.fleet.test_broken_answers import last_event

HELLO = b"".join(chunks_of("hel", "lo"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)


@pytest_asyncio.fixture
async def a() -> AsyncIterator[ScriptedNeuron]:
    async with ScriptedNeuron("a", "m") as neuron:
        yield neuron


@pytest_asyncio.fixture
async def b() -> AsyncIterator[ScriptedNeuron]:
    async with ScriptedNeuron("b", "m") as neuron:
        yield neuron


@pytest_asyncio.fixture
async def late() -> AsyncIterator[LateNeuron]:
    neuron = LateNeuron("late", "m")
    async with neuron:
        yield neuron


@pytest.mark.usefixtures("impatient")
async def test_a_stream_that_waits_for_a_seat_hears_signs_of_life(late: LateNeuron) -> None:
    async with running_desk(late) as desk:
        asked = desk.chat(stream=True)
        await asked.until(KEEP_ALIVE, 2)
        assert not late.calls
        late.told.set()
        reply = await asked.reply()
    assert reply.body.replace(KEEP_ALIVE, b"") == HELLO
    (outcome,) = desk.outcomes
    assert outcome.queued_s > 0.05
    assert (outcome.kind, outcome.device, outcome.retries) == ("ok", "cpu", 0)


async def test_the_wait_for_a_seat_is_not_the_nodes_time(late: LateNeuron) -> None:
    async with running_desk(late, first_byte_timeout_s=1.0, idle_timeout_s=1.0) as desk:
        asked = desk.chat()
        await asyncio.sleep(1.2)
        assert not asked.task.done()
        late.told.set()
        assert (await asked.reply()).status == 200


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_leaves_while_it_waits_for_a_seat_asks_nobody(
    late: LateNeuron,
) -> None:
    async with running_desk(late) as desk:
        asked = desk.chat(stream=True)
        await asked.until(KEEP_ALIVE)
        asked.leave()
        await asyncio.wait_for(asked.task, 5)
        late.told.set()
        assert (await desk.chat().reply()).status == 200
    assert [outcome.kind for outcome in desk.outcomes] == ["client_gone", "ok"]
    assert len(late.calls) == 1
    assert desk.outcomes[0].node is None


@pytest.mark.usefixtures("impatient")
async def test_a_refusal_after_signs_of_life_for_want_of_a_seat_is_an_error_event(
    late: LateNeuron,
) -> None:
    async with running_desk(late) as desk:
        asked = desk.chat("nobody/has-this", stream=True)
        await asked.until(KEEP_ALIVE)
        late.told.set()
        reply = await asked.reply()
    assert last_event(reply.body)["error"]["code"] == "model_not_found"
    assert desk.outcomes[0].kind == "rejected"


@pytest.mark.usefixtures("impatient")
async def test_a_drain_ends_who_waits_for_a_seat(late: LateNeuron) -> None:
    async with running_desk(late) as desk:
        asked = desk.chat(stream=True)
        await asked.until(KEEP_ALIVE)
        await desk.gateway.admission.drain(0.01)
        reply = await asked.reply()
    assert last_event(reply.body)["error"]["code"] == "shutting_down"


# waiting for a load, in the dialects that ship

MESSAGES = [{"role": "user", "content": "hi"}]
ASKED = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/responses": {"input": "hi"},
}
ALIVE = {"/v1/messages": b"event: ping\n"}
OVER = {
    "/v1/messages": b"event: message_stop\n",
    "/v1/responses": b"event: response.completed\n",
}
FAILED = {"/v1/messages": b"event: error\n", "/v1/responses": b"event: response.failed\n"}


@pytest_asyncio.fixture
async def cold_desk(a: ScriptedNeuron, tmp_path: Path) -> AsyncIterator[Desk]:
    """Nobody has loaded the model new, which a could load; its loads wait for a's gate."""
    a.shelf.sizes["new"] = 100
    a.shelf.gate.clear()
    models = tmp_path / "models.toml"
    models.write_text('[[models]]\nid = "new"\n', "utf-8")
    async with running_desk(a, models=str(models), max_waiting=1) as desk:
        yield desk


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", ASKED)
async def test_a_stream_that_waits_for_a_load_hears_signs_of_life_in_its_dialect(
    a: ScriptedNeuron, cold_desk: Desk, path: str
) -> None:
    a.script = lambda call: call.stream(*chunks_of("hel", "lo", usage=True))
    asked = cold_desk.ask(path, {"model": "new", "stream": True} | ASKED[path])
    await asked.until(ALIVE.get(path, KEEP_ALIVE), 2)
    a.shelf.gate.set()
    reply = await asked.reply()
    assert reply.status == 200
    assert OVER.get(path, b"data: [DONE]\n") in reply.body
    (outcome,) = cold_desk.outcomes
    assert (outcome.kind, outcome.node, outcome.streamed) == ("ok", "a", True)
    assert outcome.load_s is not None
    assert 0 < outcome.load_s <= outcome.queued_s


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", ASKED)
async def test_a_load_that_fails_is_told_in_the_dialect_of_who_waits(
    a: ScriptedNeuron, cold_desk: Desk, path: str
) -> None:
    a.shelf.faults["new"] = Fault("gguf_corrupt", "bad magic")
    asked = cold_desk.ask(path, {"model": "new", "stream": True} | ASKED[path])
    await asked.until(ALIVE.get(path, KEEP_ALIVE))
    a.shelf.gate.set()
    reply = await asked.reply()
    assert FAILED.get(path, b'data: {"error"') in reply.body
    assert b"bad magic" in reply.body
    assert OVER.get(path, b"[DONE]") not in reply.body
    assert not a.calls
    (outcome,) = cold_desk.outcomes
    assert (outcome.kind, outcome.status, outcome.node) == ("rejected", 200, None)


@pytest.mark.parametrize("path", ASKED)
async def test_one_too_many_in_line_is_told_when_to_come_back(
    a: ScriptedNeuron, cold_desk: Desk, path: str
) -> None:
    first = cold_desk.chat("new")
    await eventually(lambda: _waits(cold_desk, "new"))
    reply = await cold_desk.ask(path, {"model": "new", "stream": True} | ASKED[path]).reply()
    assert reply.status == 429
    assert int(reply.headers["retry-after"]) > 0
    assert json.loads(reply.body)["error"]["type"] == "rate_limit_error"
    a.shelf.gate.set()
    assert (await first.reply()).status == 200


async def _waits(desk: Desk, model: str) -> bool:
    return desk.gateway.fleet.conductor.waiting.get(model, 0) > 0


@pytest.mark.usefixtures("impatient")
async def test_whatever_clients_and_nodes_do_nothing_is_left_behind(
    a: ScriptedNeuron, b: ScriptedNeuron, tmp_path: Path
) -> None:
    """Each request has one outcome, and then no task, no seat and no place in line."""
    chance = random.Random(5)

    async def whatever(call: Call) -> None:
        how = chance.randrange(6)
        await asyncio.sleep(chance.random() * 0.1)
        if how == 0:
            call.reset()
        elif how == 1:
            await call.answer({"error": {"message": "full", "code": "no_capacity"}}, 503)
        elif how == 2:
            await call.start_stream()
            await call.chunk(b": alive\n\n")
            await call.chunk(chunks_of("half")[0])
            call.close()
        elif how == 3:
            await call.gone()
        elif call.json.get("stream"):
            await call.stream(*chunks_of("hel", "lo"))
        else:
            await call.answer(completion("hello"))

    models = tmp_path / "models.toml"
    models.write_text('[[models]]\nid = "m"\n[[models]]\nid = "new"\n', "utf-8")
    a.script = b.script = whatever
    a.shelf.sizes["new"] = 100
    a.shelf.gate.clear()
    async with running_desk(a, b, models=str(models), first_byte_timeout_s=0.3) as desk:
        asyncio.get_running_loop().call_later(0.2, a.shelf.gate.set)
        asked = []
        for _ in range(150):
            path = chance.choice(list(ASKED))
            body = {"model": chance.choice(["m", "new", "nobody/has-this"])} | ASKED[path]
            asked.append(desk.ask(path, body | {"stream": chance.random() < 0.7}))
            if chance.random() < 0.4:
                asyncio.get_running_loop().call_later(chance.random() * 0.3, asked[-1].leave)
            await asyncio.sleep(chance.random() * 0.005)
        for each in asked:
            await asyncio.wait_for(each.task, 20)
        assert len(desk.outcomes) == len(asked)
        assert {outcome.kind for outcome in desk.outcomes} == {
            "ok",
            "client_gone",
            "upstream_failed",
            "stalled",
            "rejected",
        }
        fleet = desk.gateway.fleet
        assert not any(fleet.conductor.waiting.values())
        assert [fleet.conductor.in_flight(node) for node in ("a", "b")] == [0, 0]
        left = [repr(task.get_coro()) for task in asyncio.all_tasks()]
        assert not [task for task in left if "Reply." in task or "Vigil." in task]

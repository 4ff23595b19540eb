"""A configuration read again: what differs moves, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from cortex_core.errors import InvalidConfiguration
from tests.fleet.conftest import Reply, Rig, config_of, eventually, running_rig
from tests.fleet.in_process import running_desk
from tests.fleet.scripted_neuron import Call, ScriptedNeuron, chunks_of

MODELS = '[[models]]\nid = "m"\n'


def write(folder: Path, *neurons: ScriptedNeuron, **settings: Any) -> None:
    (folder / "cortex.toml").write_text(config_of(neurons, **settings), "utf-8")


async def reload(rig: Rig) -> Reply:
    return await rig.ask("POST", "/admin/reload")


async def changed(rig: Rig) -> list[str]:
    reply = await reload(rig)
    assert reply.status == 200, reply.body
    return json.loads(reply.body)["changed"]


async def test_nothing_different_changes_nothing(tmp_path: Path) -> None:
    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a], MODELS) as rig:
        assert await changed(rig) == []
        assert (await rig.chat("m")).status == 200


async def test_a_stream_goes_on_while_nodes_come_and_go(tmp_path: Path) -> None:
    """Even one from the node that is taken out of the configuration."""
    async with ScriptedNeuron("a", "m") as a, ScriptedNeuron("b", "m") as b:
        first, *rest = chunks_of("hel", "lo")
        release = asyncio.Event()

        async def script(call: Call) -> None:
            await call.start_stream()
            await call.chunk(first)
            await release.wait()
            for chunk in rest:
                await call.chunk(chunk)
            await call.end()

        a.script = script
        async with running_rig(tmp_path, [a]) as rig:
            chat = asyncio.create_task(rig.chat("m", stream=True))
            await rig.until_in_flight("a", 1)
            write(tmp_path, b)
            assert sorted(await changed(rig)) == ["neurons.a", "neurons.b"]
            assert list(await rig.fleet()) == ["b"]
            await rig.until_reachable("b")
            assert (await rig.chat("m")).headers["x-cortex-node"] == "b"
            release.set()
            assert (await chat).body == b"".join([first, *rest])
            assert 'cortex_node_up{node="a"}' not in await rig.metrics()


async def test_a_hang_up_reloads(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", "m") as a,
        ScriptedNeuron("b", "only/b") as b,
        running_rig(tmp_path, [a]) as rig,
    ):
        write(tmp_path, a, b)
        rig.daemon.signal(signal.SIGHUP)
        await asyncio.to_thread(rig.daemon.wait_log, '"reloaded" changed="neurons.b"')
        await rig.until_reachable("b")
        assert (await rig.chat("only/b")).status == 200
        (tmp_path / "cortex.toml").write_text("[gateway", "utf-8")
        rig.daemon.signal(signal.SIGHUP)
        await asyncio.to_thread(rig.daemon.wait_log, '"not reloaded" cause=".*not valid TOML')
        assert (await rig.chat("only/b")).status == 200


async def test_a_bad_file_changes_nothing_and_says_why(tmp_path: Path) -> None:
    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a], MODELS) as rig:
        for name, text, culprit in (
            ("cortex.toml", '[[neurons]]\nname = "x"\n', "neurons[0].endpoint"),
            ("models.toml", '[[models]]\nidd = "m"\n', "models.toml: models[0].idd"),
        ):
            before = (tmp_path / name).read_text("utf-8")
            (tmp_path / name).write_text(text, "utf-8")
            reply = await reload(rig)
            error = json.loads(reply.body)["error"]
            assert (reply.status, error["code"]) == (422, "invalid_configuration")
            assert culprit in error["message"]
            (tmp_path / name).write_text(before, "utf-8")
        assert list(await rig.fleet()) == ["a"]
        assert (await rig.chat("m")).status == 200


async def test_what_cannot_change_is_refused_by_name_and_nothing_else_moves(
    tmp_path: Path,
) -> None:
    async with (
        ScriptedNeuron("a", "m") as a,
        ScriptedNeuron("b", "m") as b,
        running_rig(tmp_path, [a]) as rig,
    ):
        write(tmp_path, b, listen="127.0.0.1:1", max_body_mb=7)
        reply = await reload(rig)
        message = json.loads(reply.body)["error"]["message"]
        assert reply.status == 422
        assert "gateway.listen, gateway.max_body_mb: cannot change" in message
        assert list(await rig.fleet()) == ["a"]


async def test_the_catalogue_is_read_again(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", "m", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], MODELS) as rig,
    ):
        assert (await rig.chat("new")).status == 404
        listing = MODELS + '[[models]]\nid = "new"\n[aliases]\nbest = "new"\n'
        (tmp_path / "models.toml").write_text(listing, "utf-8")
        assert await changed(rig) == ["models.new", "aliases.best"]
        assert (await rig.chat("best")).status == 200
        assert a.calls[-1].json["model"] == "new"
        (tmp_path / "models.toml").write_text(MODELS, "utf-8")
        await changed(rig)
        assert (await rig.chat("best")).status == 404


async def test_limits_move_while_requests_wait(tmp_path: Path) -> None:
    models = '[[models]]\nid = "new"\n'
    async with (
        ScriptedNeuron("a", sizes={"new": 100}) as a,
        running_rig(tmp_path, [a], models) as rig,
    ):
        a.shelf.gate.clear()
        chat = asyncio.create_task(rig.chat("new"))
        await rig.until_waiting("new", 1)
        write(tmp_path, a, models="models.toml", max_waiting=1)
        assert await changed(rig) == ["gateway.max_waiting"]
        assert (await rig.chat("new")).status == 429
        a.shelf.gate.set()
        assert (await chat).status == 200


async def test_a_node_that_has_moved_is_found_at_its_new_address(tmp_path: Path) -> None:
    async with (
        ScriptedNeuron("a", "m") as a,
        ScriptedNeuron("a", "m", "moved") as other,
        running_rig(tmp_path, [a]) as rig,
    ):
        await rig.until_reachable("a")
        write(tmp_path, other)
        assert await changed(rig) == ["neurons.a"]

        async def is_moved() -> bool:
            return (await rig.chat("moved")).status == 200

        await eventually(is_moved)

        async def is_left_alone() -> bool:
            return not a.watchers

        await eventually(is_left_alone)


async def test_a_new_token_is_read_from_the_same_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old", "utf-8")
    async with ScriptedNeuron("a", "m") as a:
        a.token, a.token_file = "old", str(token)
        async with running_rig(tmp_path, [a]) as rig:
            assert (await rig.chat("m")).status == 200
            token.write_text("new", "utf-8")
            a.token = "new"
            assert await changed(rig) == ["neurons.a"]

            async def is_served() -> bool:
                return (await rig.chat("m")).status == 200

            await eventually(is_served)


async def test_a_new_admin_token_is_read_from_the_same_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old", "utf-8")
    old, new = ({"authorization": f"Bearer {word}"} for word in ("old", "new"))
    async with (
        ScriptedNeuron("a", "m") as a,
        running_rig(tmp_path, [a], admin_token_file=str(token)) as rig,
    ):
        token.write_text("new", "utf-8")
        reply = await rig.ask("POST", "/admin/reload", headers=old)
        assert json.loads(reply.body)["changed"] == ["gateway.admin_token_file"]
        assert (await rig.ask("GET", "/admin/fleet", headers=old)).status == 401
        assert (await rig.ask("GET", "/admin/fleet", headers=new)).status == 200
        token.write_text("", "utf-8")
        assert (await rig.ask("POST", "/admin/reload", headers=new)).status == 422
        assert (await rig.ask("GET", "/admin/fleet", headers=new)).status == 200


async def test_a_node_that_is_taken_out_as_a_request_is_sent_there_counts_as_failed() -> None:
    async with (
        ScriptedNeuron("a", "m") as a,
        ScriptedNeuron("b", "m") as b,
        running_desk(a, b) as desk,
    ):
        assert (await desk.chat().reply()).headers["x-cortex-node"] == "a"
        del desk.gateway.upstream.neurons["a"]  # the conductor is yet to hear of it
        assert (await desk.chat().reply()).headers["x-cortex-node"] == "b"
        del desk.gateway.upstream.neurons["b"]
        reply = await desk.chat().reply()
        assert reply.status == 503
        assert "is not configured any more" in json.loads(reply.body)["error"]["message"]


async def test_a_gateway_that_was_not_started_from_a_file_has_nothing_to_read_again() -> None:
    async with ScriptedNeuron("a", "m") as a, running_desk(a) as desk:
        with pytest.raises(InvalidConfiguration, match="was not started from a file"):
            await desk.gateway.reload()

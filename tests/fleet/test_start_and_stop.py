"""Starting: clear refusals. Stopping: what runs is finished, what comes is sent elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.fleet.conftest import Rig, config_of, eventually, running_rig, spawn_gateway
from tests.fleet.scripted_neuron import Call, ScriptedNeuron, chunks_of
from tests.fleet.test_broken_answers import last_event
from tests.processes import Daemon, clean_environment

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = {"model": "m", "stream": True}
CHAT = "/v1/chat/completions"


class Held:
    """A script that streams one event, waits to be released, and ends well."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.first, self.second, self.done = chunks_of("one", "two")

    async def __call__(self, call: Call) -> None:
        await call.start_stream()
        await call.chunk(self.first)
        await self.release.wait()
        await call.chunk(self.second)
        await call.chunk(self.done)
        await call.end()


async def until_draining(rig: Rig) -> None:
    async def is_draining() -> bool:
        return (await rig.ask("GET", "/health")).status == 503

    await eventually(is_draining)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_drain_finishes_streams_and_refuses_newcomers(tmp_path: Path, number: int) -> None:
    held = Held()
    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a]) as rig:
        a.script = held
        async with rig.client.post(rig.url + CHAT, json=BODY) as response:
            await response.content.readexactly(len(held.first))
            rig.daemon.signal(number)
            await until_draining(rig)
            refused = await rig.chat()
            assert refused.status == 503
            assert json.loads(refused.body)["error"]["code"] == "shutting_down"
            assert int(refused.headers["retry-after"]) > 0
            assert json.loads((await rig.ask("GET", "/health")).body)["status"] == "draining"
            assert rig.daemon.process.poll() is None
            held.release.set()
            assert await response.content.read() == held.second + held.done
        assert await asyncio.to_thread(rig.daemon.wait, 10) == 0


async def test_an_idle_gateway_stops_at_once(tmp_path: Path) -> None:
    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a]) as rig:
        await rig.chat()  # leaves an idle connection on either side
        rig.daemon.signal(signal.SIGTERM)
        assert await asyncio.to_thread(rig.daemon.wait, 10) == 0


async def test_what_outlives_the_drain_is_told_so(tmp_path: Path) -> None:
    held = Held()
    async with (
        ScriptedNeuron("a", "m") as a,
        running_rig(tmp_path, [a], drain_s=0.3) as rig,
    ):
        a.script = held
        async with rig.client.post(rig.url + CHAT, json=BODY) as response:
            await response.content.readexactly(len(held.first))
            rig.daemon.signal(signal.SIGTERM)
            rest = await response.content.read()
            assert last_event(rest)["error"]["code"] == "shutting_down"
            assert b"[DONE]" not in rest
        assert await asyncio.to_thread(rig.daemon.wait, 10) == 0


async def test_a_second_signal_cuts_the_drain_short(tmp_path: Path) -> None:
    held = Held()
    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a]) as rig:
        a.script = held
        async with rig.client.post(rig.url + CHAT, json=BODY) as response:
            await response.content.readexactly(len(held.first))
            rig.daemon.signal(signal.SIGINT)
            await until_draining(rig)
            rig.daemon.signal(signal.SIGINT)
            rest = await response.content.read()
            assert last_event(rest)["error"]["code"] == "shutting_down"
        assert await asyncio.to_thread(rig.daemon.wait, 10) == 0


async def test_two_signals_at_once_cut_the_drain_short(tmp_path: Path) -> None:
    """As from a service manager and a wrapper that passes its own on."""
    held = Held()
    async with ScriptedNeuron("a", "m") as a, running_rig(tmp_path, [a], drain_s=600) as rig:
        a.script = held
        async with rig.client.post(rig.url + CHAT, json=BODY) as response:
            await response.content.readexactly(len(held.first))
            for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
                rig.daemon.signal(number)
            rest = await response.content.read()
            assert last_event(rest)["error"]["code"] == "shutting_down"
        assert await asyncio.to_thread(rig.daemon.wait, 10) == 0


async def test_a_client_that_never_reads_does_not_keep_the_gateway(tmp_path: Path) -> None:
    async def flood(call: Call) -> None:
        await call.start_stream()
        with contextlib.suppress(ConnectionError):
            while True:
                await call.chunk(chunks_of("x" * 60_000)[0])

    async with (
        ScriptedNeuron("a", "m") as a,
        running_rig(tmp_path, [a], drain_s=0.2) as rig,
    ):
        a.script = flood
        async with rig.client.post(rig.url + CHAT, json=BODY) as response:
            await response.content.readexactly(10)
            rig.daemon.signal(signal.SIGTERM)
            assert await asyncio.to_thread(rig.daemon.wait, 10) == 0


@pytest.mark.parametrize("command", [["-m", "cortex_gateway"], ["-m", "cortex_cli", "serve"]])
async def test_a_hang_up_that_comes_too_early_is_followed_later(
    tmp_path: Path, command: list[str]
) -> None:
    """As from a `systemctl reload` right after the start. The configuration is a pipe at first, so
    that the signal comes while it is being read."""
    pipe, later = tmp_path / "cortex.toml", tmp_path / "later"
    os.mkfifo(pipe)
    later.write_text(config_of([], drain_s=7), "utf-8")
    arguments = [sys.executable, *command, "--config", str(pipe)]
    daemon = Daemon("gateway", arguments, clean_environment())
    try:
        with await asyncio.to_thread(pipe.open, "w") as end:  # waits for the reader
            daemon.signal(signal.SIGHUP)
            later.rename(pipe)
            end.write(config_of([]))
        line = await asyncio.to_thread(daemon.wait_log, "reload")
        assert "gateway.drain_s" in line.string
    finally:
        await asyncio.to_thread(daemon.stop)
    assert daemon.process.returncode == 0


async def refusal(tmp_path: Path, config: str, environment: dict[str, str] | None = None) -> str:
    """What a gateway says that will not start."""
    file = tmp_path / "cortex.toml"
    file.write_text(config, "utf-8")
    daemon = spawn_gateway(file, environment)
    assert await asyncio.to_thread(daemon.wait, 30) == 2
    assert "Traceback" not in daemon.log
    (line,) = daemon.log.splitlines()
    return line.replace(str(file), "FILE")


@pytest.mark.parametrize("key", ["listen", "metrics_listen"])
async def test_a_port_that_is_taken_is_named(tmp_path: Path, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = await refusal(tmp_path, config_of([], **{key: address}))
        assert line == f"error: gateway.{key}: cannot listen on {address}: address already in use"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            "[gateway]\nlissten = 'x'",
            "error: FILE: gateway.lissten: unknown key; did you mean 'listen'?",
        ),
        (
            "[gateway]\nmax_body_mb = 'big'",
            "error: FILE: gateway.max_body_mb: expected `int`, got `str`",
        ),
        (
            "[gateway]\nlisten = 'here'",
            "error: FILE: gateway.listen: expected host:port, got 'here'",
        ),
        (
            "[[neurons]]\nname = 'a'\nendpoint = 'beast:13131'",
            "error: FILE: neurons[0].endpoint: expected http://host:port, got 'beast:13131'",
        ),
        ("[gateway", "error: FILE: not valid TOML: "),
    ],
)
async def test_a_bad_configuration_names_file_key_and_what_was_expected(
    tmp_path: Path, config: str, line: str
) -> None:
    assert (await refusal(tmp_path, config)).startswith(line)


async def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    line = await refusal(tmp_path, "", {"CORTEX_GATEWAY__DRAIN_S": "soon"})
    assert line.startswith("error: CORTEX_GATEWAY__DRAIN_S: gateway.drain_s: ")


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    daemon = spawn_gateway(tmp_path / "none.toml")
    assert await asyncio.to_thread(daemon.wait, 30) == 2
    assert daemon.log == f"error: {tmp_path / 'none.toml'}: no such file"


async def test_a_token_file_without_a_token_is_named(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("\n", "utf-8")
    async with ScriptedNeuron("a") as neuron:
        neuron.token_file = str(token_file)
        line = await refusal(tmp_path, config_of([neuron]))
    where = f"neurons[0].token_file: {token_file}"
    assert line == f"error: FILE: {where}: expected one line with a bearer token"

"""The neuron as a process: configuration that is refused, ports, signals, and a clean end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.e2e.neuron.client import QUESTION, TINY, ask, connect, endless, worker_pid
from tests.processes import spawn_neuron, start_neuron


def is_running(pid: int) -> bool:
    """A zombie has ended; it only waits to be reaped by init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("lisen = 'x:1'", "lisen: unknown key; did you mean 'listen'?"),
        ("listen = 'nowhere'", "listen: expected host:port, got 'nowhere'"),
        ("[engine]\nparallel = 'many'", "engine.parallel: expected `int`, got `str`"),
        ("[engine]\nparallel = 0", "engine.parallel: expected `int` >= 1"),
        ("[engine]\nstep_timeout_s = 0", "engine.step_timeout_s: expected `float` > 0"),
        ("name = 'two words'", "name: expected `str` matching regex"),
        ("drain_s = -1", "drain_s: expected `float` >= 0.0"),
        ("token_file = '/nonexistent'", "token_file: no such file: /nonexistent"),
        ("[models]\nlocal = ['/nonexistent']", "models.local[0]: no such folder: /nonexistent"),
        ("[[default_models]]\nid = '/nonexistent.gguf'", "default_models[0].id: no such file"),
        ("[[default_models]]\nid = 'cortex/tinny'", "default_models[0].id: no such model: 'cort"),
        (
            "[[default_models]]\nid = 'org/name'\n[models]\nsources = []",
            "default_models[0].id: no such model: 'org/name'; this node has no hub to ask",
        ),
        (
            "[[default_models]]\nid = 'org/name'\nsource = 'mine'",
            "default_models[0].source: there is no 'mine' in models.sources (hub)",
        ),
        (
            "[[models.sources]]\nname = 'a'\nendpoint = 'a.example'",
            "models.sources[0].endpoint: expected http(s)://host, got 'a.example'",
        ),
        (
            "[[models.sources]]\nname = 'a'\ntoken_file = '/nonexistent'",
            "models.sources[0].token_file: no such file: /nonexistent",
        ),
        (
            "[[models.sources]]\nname = 'a'\n[[models.sources]]\nname = 'a'",
            "models.sources[1].name: 'a' is given twice",
        ),
        ("[[default_models]]\ndevice = 'cpu'", "default_models[0].id: required, but missing"),
        ("listen = ", "not valid TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(tmp_path: Path, toml: str, problem: str):
    file = tmp_path / "neuron.toml"
    file.write_text(toml)
    daemon = spawn_neuron("--config", str(file))
    assert daemon.wait() == 2
    (line,) = daemon.log.splitlines()
    assert line.startswith(f"neuron: {file}: ")
    assert problem in line


def test_a_missing_configuration_is_refused():
    daemon = spawn_neuron("--config", "/nonexistent/neuron.toml")
    assert daemon.wait() == 2
    assert daemon.log == "neuron: /nonexistent/neuron.toml: no such file"


@pytest.mark.parametrize(
    ("name", "value"), [("NEURON_LISTN", "x"), ("NEURON_ENGINE__PARALLEL", "many")]
)
def test_a_wrong_variable_is_named(name: str, value: str):
    daemon = spawn_neuron(environment={name: value})
    assert daemon.wait() == 2
    assert daemon.log.startswith(f"neuron: {name}: ")


def test_an_empty_token_file_is_refused(tmp_path: Path):
    (tmp_path / "token").write_text("\n")
    daemon = spawn_neuron(environment={"NEURON_TOKEN_FILE": str(tmp_path / "token")})
    assert daemon.wait() == 2
    assert "token_file: " in daemon.log
    assert "expected one line with a bearer token" in daemon.log


def test_a_missing_model_on_the_command_line_is_refused():
    daemon = spawn_neuron("--model", "/nonexistent.gguf")
    assert daemon.wait() == 2
    assert "no such file: /nonexistent.gguf" in daemon.log


def test_check_config_starts_nothing(tmp_path: Path):
    file = tmp_path / "neuron.toml"
    file.write_text("drain_s = 5")
    daemon = spawn_neuron("--config", str(file), "--check-config")
    assert daemon.wait() == 0
    assert daemon.log == "the configuration is good"


def test_a_port_that_is_taken_is_one_line_and_starts_no_worker():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = spawn_neuron("--listen", listen)
        assert daemon.wait() == 2
        (line,) = daemon.log.splitlines()
        assert line == f"neuron: listen: cannot listen on {listen}: Address already in use"


def test_the_listening_line_tells_name_and_real_port():
    with start_neuron("--name", "beast", models=()) as daemon:
        assert f"neuron beast listening on {daemon.url}" in daemon.log
        assert not daemon.url.endswith(":0")


async def test_a_term_lets_streams_finish_refuses_what_is_new_and_exits_0():
    with start_neuron() as daemon:
        async with connect(daemon.url) as client:
            pid = worker_pid(await client.until_ready())
            events = aiter(client.states())
            await anext(events)
            async with client.stream(endless(max_tokens=100)) as stream:
                await stream.until_text()
                os.kill(pid, signal.SIGSTOP)  # so that the drain lasts while we look at it
                daemon.signal(signal.SIGTERM)
                async with asyncio.timeout(10):
                    while not (await anext(events)).draining:
                        pass
                health = await client.get("/health")
                assert health.status == 503
                assert health.json["status"] == "draining"
                for path, body in (
                    ("/v1/chat/completions", ask(QUESTION)),
                    ("/models/load", {"model": TINY}),
                ):
                    refused = await client.post(path, body)
                    assert refused.status == 503
                    assert refused.error["code"] == "shutting_down"
                    assert int(refused.headers["retry-after"]) > 0
                os.kill(pid, signal.SIGCONT)
                await stream.to_the_end()
                assert stream.is_done
                assert stream.error is None
            async with asyncio.timeout(10):
                async for _ in events:  # ends with the neuron
                    pass
        assert daemon.wait() == 0
        assert not is_running(pid)


async def test_a_drain_that_takes_too_long_is_cut_with_an_error_event():
    with start_neuron(config="drain_s = 0.3") as daemon:
        async with connect(daemon.url) as client:
            pid = worker_pid(await client.until_ready())
            async with client.stream(endless()) as stream:
                await stream.until_text()
                os.kill(pid, signal.SIGSTOP)
                daemon.signal(signal.SIGTERM)
                await stream.to_the_end()
                assert not stream.is_done
                assert stream.error is not None
                assert stream.error["code"] == "shutting_down"
            os.kill(pid, signal.SIGCONT)  # it obeys then, and need not be killed
        assert daemon.wait() == 0
        assert not is_running(pid)


async def test_a_second_signal_ends_the_drain():
    with start_neuron() as daemon:
        async with connect(daemon.url) as client:
            pid = worker_pid(await client.until_ready())
            async with client.stream(endless()) as stream:
                await stream.until_text()
                os.kill(pid, signal.SIGSTOP)
                daemon.signal(signal.SIGINT)
                await client.until(lambda s: s.draining)
                daemon.signal(signal.SIGINT)
                await stream.to_the_end()
                assert not stream.is_done
            os.kill(pid, signal.SIGCONT)
        assert daemon.wait() == 0


async def test_a_term_during_a_load_ends_cleanly():
    with start_neuron() as daemon:
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


async def test_two_signals_at_once_end_it_too():
    """As from a service manager and a wrapper that passes its own on: the second one comes before
    the drain has made its first step."""
    with start_neuron() as daemon:
        async with connect(daemon.url) as client:
            await client.until_ready()
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            daemon.signal(number)
        assert daemon.wait() == 0


async def test_workers_do_not_outlive_a_neuron_that_is_killed():
    with start_neuron() as daemon:
        async with connect(daemon.url) as client:
            pid = worker_pid(await client.until_ready())
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        async with asyncio.timeout(10):
            while is_running(pid):
                await asyncio.sleep(0.02)


async def test_a_client_that_leaves_frees_its_sequence():
    with start_neuron() as daemon:
        async with connect(daemon.url) as client:
            await client.until_ready()
            async with client.stream(endless()) as stream:
                await stream.until_text()
                stream.response.close()
            await client.until(lambda s: s.models[0].running == 0)
            assert (await client.chat(QUESTION)).status == 200


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end():
    with start_neuron(config="drain_s = 0.3") as daemon:
        async with connect(daemon.url) as client:
            await client.until_ready()
            host, port = daemon.url.removeprefix("http://").split(":")
            with socket.socket() as deaf:
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                deaf.connect((host, int(port)))
                # Pipelined pages nobody reads fill every buffer on the way.
                request = b"GET /discovery HTTP/1.1\r\nhost: x\r\n\r\n"
                deaf.setblocking(False)
                sent = 0
                try:
                    while sent < 64 << 20:
                        sent += deaf.send(request * 100)
                        await asyncio.sleep(0)
                except BlockingIOError:
                    pass
                assert (await client.get("/health")).status == 200
                daemon.signal(signal.SIGTERM)
                assert await asyncio.to_thread(daemon.wait) == 0

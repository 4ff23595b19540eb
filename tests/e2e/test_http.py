"""HTTP as clients, proxies and bad networks speak it: TLS and HTTP/2, odd methods and connections,
readers and senders that are slow."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from h2.connection import H2Connection
from h2.events import DataReceived

from tests.e2e.client import CHAT, TINY, ask, eventually, fetch, open_stream, user
from tests.e2e.conftest import Stack, gateway_config
from tests.fleet.conftest import spawn_gateway
from tests.processes import Daemon, start_gateway, start_neuron

_PING = {"model": TINY, "messages": user("ping"), "enable_thinking": False, "temperature": 0}
PING = json.dumps(_PING).encode()
STREAM = json.dumps(_PING | {"stream": True}).encode()
ENDLESS = {"model": TINY, "messages": user("Hello!"), "stream": True, "ignore_eos": True}


# TLS and HTTP/2


@dataclass(frozen=True)
class Secure:
    """A gateway over TLS, whose certificate `trust` trusts."""

    gateway: Daemon
    trust: ssl.SSLContext

    def client(self, *, http1: bool = True, http2: bool = False) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.gateway.url,
            verify=self.trust,
            timeout=30,
            trust_env=False,
            http1=http1,
            http2=http2,
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Its own, for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=cortex", "-addext"]
    command += ["subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def secure(stack: Stack, certificate: tuple[Path, Path]) -> Iterator[Secure]:
    cert, key = certificate
    keys = f'[gateway]\ntls_cert = "{cert}"\ntls_key = "{key}"\nmax_body_mb = 1\n'
    config = gateway_config(stack.neuron.url).replace("[gateway]\n", keys)
    with start_gateway(config) as gateway:
        yield Secure(gateway, ssl.create_default_context(cafile=str(cert)))


@pytest.mark.parametrize("is_two", [False, True])
async def test_both_versions_of_http_are_spoken_over_tls(secure: Secure, is_two: bool) -> None:
    assert secure.gateway.url.startswith("https://")
    async with secure.client(http1=not is_two, http2=is_two) as client:
        answer = await client.post(CHAT, content=PING)
        assert answer.http_version == ("HTTP/2" if is_two else "HTTP/1.1")
        assert answer.json()["choices"][0]["message"]["content"] == "pong"
        assert answer.headers["x-cortex-node"] == "n0"


async def test_a_client_that_may_choose_chooses_http_2(secure: Secure) -> None:
    async with secure.client(http2=True) as client:
        assert (await client.get("/version")).http_version == "HTTP/2"


async def test_streams_share_one_http_2_connection(secure: Secure) -> None:
    async with secure.client(http1=False, http2=True) as client:

        async def words() -> str:
            async with client.stream("POST", CHAT, content=STREAM) as answer:
                return (await answer.aread()).decode()

        for text in await asyncio.gather(*(words() for _ in range(8))):
            assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, b"x" * (1024 * 1024 + 1), 413),
        ("/v1/nothing", b"x" * 5_000_000, 404),
        (CHAT, b"{", 400),
    ],
)
async def test_a_refusal_over_http_2_arrives_and_the_connection_lives_on(
    secure: Secure, path: str, body: bytes, status: int
) -> None:
    """Also while the body is still coming in."""
    async with secure.client(http1=False, http2=True) as client:
        answer = await client.post(path, content=body)
        assert (answer.status_code, answer.http_version) == (status, "HTTP/2")
        assert answer.json()["error"]["message"]
        assert (await client.post(CHAT, content=PING)).status_code == 200


async def test_a_client_that_resets_an_http_2_stream_has_left(secure: Secure) -> None:
    secure.trust.set_alpn_protocols(["h2"])
    pseudo = [(":method", "POST"), (":path", CHAT), (":scheme", "https"), (":authority", "x")]
    async with _connection(secure.gateway.url, secure.trust) as (reader, writer):
        talk = H2Connection()
        talk.initiate_connection()
        talk.send_headers(1, [*pseudo, ("x-request-id", "left")])
        talk.send_data(1, json.dumps(ENDLESS).encode(), end_stream=True)
        writer.write(talk.data_to_send())
        is_answered = False
        while not is_answered:
            events = talk.receive_data(await asyncio.wait_for(reader.read(65536), 30))
            is_answered = any(isinstance(event, DataReceived) for event in events)
        talk.reset_stream(1)
        writer.write(talk.data_to_send())
        await asyncio.to_thread(
            secure.gateway.wait_log, r'"request" kind=client_gone request_id=left '
        )


async def test_plain_text_on_a_tls_port_is_turned_away_and_others_are_served(
    secure: Secure,
) -> None:
    async with _connection(secure.gateway.url) as (reader, writer):
        writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in await asyncio.wait_for(reader.read(), 10)
    async with secure.client() as client:
        assert (await client.get("/version")).status_code == 200


def test_metrics_stay_in_plain_text(secure: Secure) -> None:
    assert secure.gateway.urls["metrics"].startswith("http://")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('tls_cert = "{cert}"', "gateway.tls_key: required together with tls_cert"),
        ('tls_key = "{key}"', "gateway.tls_cert: required together with tls_key"),
        ('tls_cert = "/no/such"\ntls_key = "{key}"', "gateway.tls_cert: no such file: /no/such"),
        ('tls_cert = "{key}"\ntls_key = "{key}"', "gateway.tls_cert: cannot use"),
        ('tls_cert = "{cert}"\ntls_key = "{cert}"', "gateway.tls_cert: cannot use"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(
    tmp_path: Path, certificate: tuple[Path, Path], keys: str, words: str
) -> None:
    cert, key = certificate
    config = tmp_path / "cortex.toml"
    config.write_text(f"[gateway]\n{keys.format(cert=cert, key=key)}\n", "utf-8")
    daemon = spawn_gateway(config)
    assert daemon.wait() == 2
    assert words in daemon.log


# methods, paths and connections


@asynccontextmanager
async def _connection(
    url: str, trust: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = url.partition("://")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=trust)
    try:
        yield reader, writer
    finally:
        writer.close()


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/version", "/openapi.json"])
async def test_a_head_is_that_of_the_answer_and_nothing_else(stack: Stack, path: str) -> None:
    async with _connection(stack.url) as (reader, writer):
        writer.write(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        rest = await asyncio.wait_for(reader.read(), 10)
    assert head.startswith(b"HTTP/1.1 200")
    assert b"content-length: 0" not in head.lower()
    assert rest.startswith(b"HTTP/1.1 200")  # the next answer, right after the head


async def test_options_without_cors_names_what_is_allowed(stack: Stack) -> None:
    answer = await fetch("OPTIONS", stack.url + CHAT)
    assert (answer.status, answer.body["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
async def test_a_slash_at_the_end_makes_no_difference(stack: Stack, path: str) -> None:
    body = {"model": TINY, "messages": user("ping"), "max_tokens": 5}
    if path == "/v1/responses":
        body = {"model": TINY, "input": "ping"}
    assert (await fetch("POST", f"{stack.url}{path}/", body)).status == 200


async def test_requests_in_one_go_are_answered_in_their_order(stack: Stack) -> None:
    async with _connection(stack.url) as (reader, writer):
        writer.write(_post(CHAT, STREAM) + _post(CHAT, PING) + _post(CHAT, b"{"))
        writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = await asyncio.wait_for(reader.read(), 30)
    marks = [b"data: [DONE]", b'"object":"chat.completion"', b"invalid_json", b"cortex-gateway"]
    places = [said.find(mark) for mark in marks]
    assert -1 not in places
    assert places == sorted(places)


async def test_a_client_that_has_said_all_it_has_to_say_is_still_answered(stack: Stack) -> None:
    async with _connection(stack.url) as (reader, writer):
        writer.write(_post(CHAT, PING, "Connection: close"))
        writer.write_eof()
        said = await asyncio.wait_for(reader.read(), 30)
    assert said.startswith(b"HTTP/1.1 200")
    assert b"pong" in said


async def test_what_is_no_http_is_turned_away(stack: Stack) -> None:
    async with _connection(stack.url) as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        said = await asyncio.wait_for(reader.read(), 10)
    assert not said or said.startswith(b"HTTP/1.1 400")
    assert (await fetch("GET", f"{stack.url}/version")).status == 200


# readers that are slow

READERS = 4
PATIENCE_S = 1.0


def _peak(daemon: Daemon) -> int:
    """The most bytes that were resident since `_forget_peak`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def _forget_peak(daemon: Daemon) -> int:
    Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")
    return _peak(daemon)


async def test_readers_that_stop_cost_little_memory_and_are_let_go(stack: Stack) -> None:
    """Answers of 8,000 tokens, 2 KB each with their logprobs; to another client meanwhile, its
    own."""
    patience = f"[gateway]\nidle_timeout_s = {PATIENCE_S}\n"
    config = gateway_config(stack.neuron.url).replace("[gateway]\n", patience)
    body = json.dumps(ENDLESS | {"logprobs": True, "top_logprobs": 20}).encode()
    with start_gateway(config) as gateway:
        await eventually(Stack(gateway, stack.neuron).is_servable, "cortex/tiny is servable")
        daemons = gateway, stack.neuron
        before = [_forget_peak(daemon) for daemon in daemons]
        stopped = [
            await _stopped_reader(gateway.url, _post(CHAT, body, f"x-request-id: stopped-{index}"))
            for index in range(READERS)
        ]
        async with open_stream(gateway.url, "ping") as chat:
            assert (await chat.read()).is_done
        for index in range(READERS):
            line = rf'"request" kind=client_gone request_id=stopped-{index} '
            await asyncio.to_thread(gateway.wait_log, line)
        grown = [_peak(daemon) - was for daemon, was in zip(daemons, before, strict=True)]
        for sock in stopped:
            sock.close()

    async def is_at_rest() -> bool:
        return await stack.running() == 0

    await eventually(is_at_rest, "their sequences have ended with them")
    assert max(grown) < READERS * 2 * 2**20, grown


TOKENS = 6500
"""2 KB each with their logprobs: all sockets on the way are full after some 5,000."""


async def test_an_answer_whose_reader_stops_makes_way_and_comes_in_full_once_it_reads_on() -> None:
    with (
        start_neuron(config="[engine]\nparallel = 1\ncontext = 8192\n") as node,
        start_gateway(gateway_config(node.url)) as gateway,
    ):
        stack = Stack(gateway, node)
        await eventually(stack.is_servable, "cortex/tiny is servable")
        asked = ENDLESS | {"max_tokens": TOKENS, "logprobs": True, "top_logprobs": 20}
        asked |= {"temperature": 0, "stream_options": {"include_usage": True}}
        request = _post(CHAT, json.dumps(asked).encode())
        stopped = await _stopped_reader(stack.url, request.replace(b"HTTP/1.1", b"HTTP/1.0"))

        async def is_paused() -> bool:
            return await _metric(stack.neuron, "neuron_requests_paused") == 1

        await eventually(is_paused, "its reader has stopped", within_s=60)
        before = await _metric(stack.neuron, "neuron_generated_tokens_total")
        other = (await ask(stack.url, "What is 3 + 4?")).body["usage"]
        generated = 0

        async def is_told() -> bool:
            nonlocal generated
            generated = await _metric(stack.neuron, "neuron_generated_tokens_total") - before
            return generated >= other["completion_tokens"]

        await eventually(is_told, "the worker has told what it generated meanwhile")
        assert generated <= other["completion_tokens"] + 1  # perhaps an end token
        assert await is_paused()

        stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        said = bytearray()
        while chunk := await asyncio.wait_for(
            asyncio.get_running_loop().sock_recv(stopped, 2**20), 30
        ):
            said += chunk
        stopped.close()
    lines = said.partition(b"\r\n\r\n")[2].decode().splitlines()
    *events, end = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert end == "[DONE]"
    chunks = [json.loads(event) for event in events]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    usage = chunks[-1]["usage"]
    spoken = [choice["logprobs"]["content"] for choice in choices if choice.get("logprobs")]
    scored = [score for scores in spoken for score in scores]
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert choices[-1]["finish_reason"] == "length"
    assert usage["completion_tokens"] == TOKENS
    assert len(scored) == TOKENS - thought - 2, "each token once; two are marks around the thought"
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert bytes(byte for score in scored for byte in score["bytes"]).decode().lstrip() == text


async def test_a_neuron_lets_a_reader_that_has_stopped_go_after_a_while() -> None:
    body = json.dumps(ENDLESS | {"logprobs": True, "top_logprobs": 20}).encode()
    with start_neuron(config=f"reader_timeout_s = {PATIENCE_S}\n") as node:

        async def is_ready() -> bool:
            return await _metric(node, "neuron_model_ready") == 1

        await eventually(is_ready, "cortex/tiny is ready")
        sock = await _stopped_reader(node.url, _post(CHAT, body, "x-request-id: stopped"))
        line = r'"request" kind=client_gone request_id=stopped '
        await asyncio.to_thread(node.wait_log, line)

        async def is_at_rest() -> bool:
            return await _metric(node, "neuron_requests_running") == 0

        await eventually(is_at_rest, "its sequence has ended with it")
        sock.close()


async def _metric(node: Daemon, name: str) -> int:
    """Of its one model; workers tell their part once a second."""
    text = (await fetch("GET", f"{node.url}/metrics")).body
    found = re.search(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


async def _stopped_reader(url: str, request: bytes) -> socket.socket:
    """A client that has its answer's first bytes, reads no more of it, and has little room."""
    host, _, port = url.partition("://")[2].partition(":")
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await loop.sock_connect(sock, (host, int(port)))
    await loop.sock_sendall(sock, request)
    assert await loop.sock_recv(sock, 12) == b"HTTP/1.1 200"
    return sock

"""Network failures in words."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from cortex_gateway.upstream import NETWORK_ERRORS, cause_of


@asynccontextmanager
async def listening(tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    """An https:// URL of somebody who does not speak HTTP, nor, without `tls`, TLS."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0, ssl=tls) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def failure(url: str) -> str:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(NETWORK_ERRORS) as raised:
            await session.get(url)
    return cause_of(raised.value)


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder: Path = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=x", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_named(self_signed: ssl.SSLContext) -> None:
    async with listening(self_signed) as url:
        said = await failure(url)
    assert said == "its certificate is not trusted: self-signed certificate"


async def test_who_does_not_speak_tls_is_named() -> None:
    async with listening(None) as url:
        assert (await failure(url)).startswith("it does not speak TLS with us: ")


async def test_nobody_listening_is_a_refusal() -> None:
    async with listening(None) as url:
        pass
    assert await failure(url) == "connection refused"

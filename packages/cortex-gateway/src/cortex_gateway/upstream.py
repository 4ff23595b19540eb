"""The way to the neurons: one HTTP session, one `Neuron` per box, and what their failures mean.

Owns connections and the neurons' bearer tokens; decides nothing about where a request goes.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Mapping

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from cortex_core.config.files import read_token
from cortex_core.config.gateway import NeuronEntry
from cortex_core.errors import CortexError, NodeUnavailable, UpstreamFailed

__all__ = ["NETWORK_ERRORS", "Neuron", "Upstream", "cause_of", "fault_of"]

# Shorter than the 5 s after which common servers (hypercorn, uvicorn, Node) drop an idle
# connection: a request must not be sent down a connection that the other end is closing.
KEEPALIVE_S = 4.0

# Sent only when given: a neuron needs none of aiohttp's own, and an Accept-Encoding would invite
# a body that is not passed on byte for byte.
_NO_AUTO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")

NETWORK_ERRORS = (aiohttp.ClientError, OSError, HttpProcessingError)
"""Everything that aiohttp raises when the other end or the way to it fails."""


class Neuron:
    """One configured box: where it is, and how to ask it."""

    def __init__(self, entry: NeuronEntry, session: aiohttp.ClientSession) -> None:
        self.name = entry.name
        self.endpoint = entry.endpoint.rstrip("/")
        self._session = session
        self._headers: dict[str, str] = {}
        if entry.token_file is not None:
            self._headers["Authorization"] = f"Bearer {read_token(entry.token_file)}"
        self._urls: dict[str, URL] = {}

    def is_like(self, other: Neuron) -> bool:
        """Whether both are the same box, asked in the same way."""
        return (self.endpoint, self._headers) == (other.endpoint, other._headers)

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Send a model's request to one of a few paths, perhaps with a query; returns once the
        answer's head is here. Raises NETWORK_ERRORS.

        No timeout but the one for connecting: the caller watches the rest.
        """
        url = self._urls.get(path)
        if url is None:
            url = URL(self.endpoint + path, encoded=True)
            if "?" not in path:  # of which there are as many as clients can think of
                self._urls[path] = url
        return await self._session.request(
            "POST",
            url,
            data=body,
            headers={**headers, **self._headers},
            allow_redirects=False,
        )

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        silence_s: float,
    ) -> aiohttp.ClientResponse:
        """Any other request; an answer that is silent for longer than `silence_s` is an error."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._session.timeout.sock_connect, sock_read=silence_s
        )
        return await self._session.request(
            method,
            URL(self.endpoint + path, encoded=True),
            data=body,
            headers={**(headers or {}), **self._headers},
            allow_redirects=False,
            timeout=timeout,
        )


class Upstream:
    """All neurons and the session they share; an async context manager."""

    def __init__(self, entries: Iterable[NeuronEntry], connect_timeout_s: float) -> None:
        self._entries = list(entries)
        self._connect_timeout_s = connect_timeout_s
        self.neurons: dict[str, Neuron] = {}

    async def __aenter__(self) -> Upstream:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NO_AUTO_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
        )
        try:
            self.neurons = self.prepared(self._entries)
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    def prepared(self, entries: Iterable[NeuronEntry]) -> dict[str, Neuron]:
        """The neurons that `entries` want; one that is as before is the same object. Raises
        ConfigError, and changes nothing: its owner puts them in place."""
        wanted = {entry.name: Neuron(entry, self._session) for entry in entries}
        for name, neuron in self.neurons.items():
            if name in wanted and wanted[name].is_like(neuron):
                wanted[name] = neuron
        return wanted


def cause_of(error: BaseException) -> str:
    """A network failure in a few words, without addresses (they are for operators, in the log)."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "the connection timed out"
    if isinstance(error, aiohttp.SocketTimeoutError):
        return "it fell silent"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its host name cannot be resolved"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "its answer broke off"
    if isinstance(error, ssl.SSLError):  # whose errno is none of the system's
        return _tls_cause_of(error)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
        return "its answer is not HTTP"
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _tls_cause_of(error: ssl.SSLError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        # `Hostname mismatch, certificate is not valid for …`
        why = str(getattr(error.certificate_error, "verify_message", "")).partition(",")[0]
        return f"its certificate is not trusted: {why}".rstrip(": ")
    of_ssl = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    why = str(getattr(of_ssl, "reason", None) or "the handshake failed")
    return f"it does not speak TLS with us: {why.lower().replace('_', ' ')}"


def fault_of(node: str, error: BaseException) -> CortexError:
    """The typed error for a network failure before the first byte of an answer."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return NodeUnavailable(f"the node {node} cannot be reached: {cause_of(error)}")
    return UpstreamFailed(f"the node {node} failed before it answered: {cause_of(error)}")

"""The gateway as seen from the command line: its HTTP routes as typed calls.

Every refusal of the gateway is raised as the CortexError it stands for; silence on the line as a
Failure that says what to try. Prints nothing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import aiohttp
import click
import msgspec

from cortex_cli.failure import Failure
from cortex_core.envelopes.admin import (
    FleetView,
    OperatorOrder,
    PlacementExplained,
    Reloaded,
    RequestExplained,
)
from cortex_core.envelopes.models import ModelList
from cortex_core.errors import parse_openai
from cortex_gateway.upstream import cause_of

__all__ = ["DEFAULT_URL", "Gateway", "Placed", "url_option"]

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:31313"

_ANSWER = aiohttp.ClientTimeout(total=30, sock_connect=5)
# The gateway itself watches for a stalled upstream; this only ends the wait for a dead gateway.
_STREAM = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=900)


class Placed(NamedTuple):
    """A load or unload under way, and where to ask about it."""

    order: OperatorOrder
    path: str


def url_option(command: Any) -> Any:
    """`--url`, or CORTEX_URL, as the parameter `url`."""
    return click.option(
        "--url",
        envvar="CORTEX_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        callback=lambda _ctx, _param, value: _normal(value),
        help="The gateway.",
    )(command)


def _normal(url: str) -> str:
    """Accepts what people paste: without a scheme, with a slash, or with the SDKs' /v1."""
    url = url.strip().rstrip("/").removesuffix("/v1")
    if "://" not in url:
        url = f"http://{url}"
    if not url.startswith(("http://", "https://")) or not url.partition("://")[2]:
        raise click.BadParameter(f"expected http://host:port, got {url!r}")
    return url


class Gateway:
    """A client of one gateway; an async context manager. CORTEX_ADMIN_TOKEN is for /admin."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._admin_token = os.environ.get("CORTEX_ADMIN_TOKEN")

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=_ANSWER)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fleet_json(self) -> bytes:
        """`GET /admin/fleet` as it came."""
        return await self._call("GET", "/admin/fleet")

    async def fleet(self) -> FleetView:
        return self.read_fleet(await self.fleet_json())

    def read_fleet(self, raw: bytes) -> FleetView:
        return self._decoded(raw, FleetView)

    async def models_json(self) -> bytes:
        """`GET /v1/models` as it came."""
        return await self._call("GET", "/v1/models")

    async def models(self) -> ModelList:
        return self.read_models(await self.models_json())

    def read_models(self, raw: bytes) -> ModelList:
        return self._decoded(raw, ModelList)

    async def load(self, request: dict[str, Any]) -> Placed:
        """Starts a load; `request` holds model and perhaps node, device and load options."""
        return await self._started("/admin/models/load", request)

    async def unload(self, request: dict[str, Any]) -> Placed:
        return await self._started("/admin/models/unload", request)

    async def _started(self, path: str, request: dict[str, Any]) -> Placed:
        async with self._answered("POST", path, request, _ANSWER) as response:
            order = self._decoded(await response.read(), OperatorOrder)
            # One that was handed on is known to its node alone, and does not name it.
            node = response.headers.get("x-cortex-node")
        if order.node is not None or node is None:
            return Placed(order, f"/admin/operations/{order.id}")
        placed = msgspec.structs.replace(order, node=node)
        return Placed(placed, f"/admin/operations/{node}/{order.id}")

    async def order(self, placed: Placed) -> OperatorOrder:
        """How it is by now."""
        order = self._decoded(await self._call("GET", placed.path), OperatorOrder)
        return msgspec.structs.replace(order, node=order.node or placed.order.node)

    async def drain(self, node: str, is_draining: bool) -> bytes:
        verb = "drain" if is_draining else "undrain"
        return await self._call("POST", f"/admin/nodes/{quote(node, safe='')}/{verb}", {})

    async def pin(self, model: str, is_pinned: bool) -> bytes:
        verb = "pin" if is_pinned else "unpin"
        return await self._call("POST", f"/admin/models/{verb}", {"model": model})

    async def reload(self) -> Reloaded:
        return self._decoded(await self._call("POST", "/admin/reload", {}), Reloaded)

    async def placement_json(self, model: str) -> bytes:
        """`GET /admin/explain/placement` as it came."""
        return await self._call("GET", f"/admin/explain/placement?model={quote(model, safe='')}")

    def read_placement(self, raw: bytes) -> PlacementExplained:
        return self._decoded(raw, PlacementExplained)

    async def request_json(self, request: str) -> bytes:
        """`GET /admin/explain/request/ID` as it came."""
        return await self._call("GET", f"/admin/explain/request/{quote(request)}")

    def read_request(self, raw: bytes) -> RequestExplained:
        return self._decoded(raw, RequestExplained)

    async def chat(self, request: dict[str, Any]) -> bytes:
        """`POST /v1/chat/completions`, answered whole."""
        return await self._call("POST", "/v1/chat/completions", request, _STREAM)

    async def render(self, request: dict[str, Any], tokens: str) -> bytes:
        """`POST /v1/chat/render` as it came; `tokens` is its query's."""
        return await self._call("POST", f"/v1/chat/render?tokens={tokens}", request, _STREAM)

    @asynccontextmanager
    async def chat_stream(self, request: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """`POST /v1/chat/completions` with `stream`; yields the raw bytes as they arrive."""
        async with self._answered("POST", "/v1/chat/completions", request, _STREAM) as response:
            yield response.content.iter_any()

    async def _call(
        self,
        method: str,
        path: str,
        request: dict[str, Any] | None = None,
        timeout: aiohttp.ClientTimeout = _ANSWER,  # noqa: ASYNC109 - aiohttp's own value
    ) -> bytes:
        async with self._answered(method, path, request, timeout) as response:
            return await response.read()

    @asynccontextmanager
    async def _answered(
        self,
        method: str,
        path: str,
        request: dict[str, Any] | None,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        body = None if request is None else msgspec.json.encode(request)
        headers = {"content-type": "application/json"} if body is not None else {}
        if self._admin_token and path.startswith("/admin/"):
            headers["authorization"] = f"Bearer {self._admin_token}"
        try:
            async with self._session.request(
                method,
                self.url + path,
                data=body,
                headers=headers,
                timeout=timeout,
            ) as response:
                if response.status >= 400:
                    raise parse_openai(
                        await response.read(),
                        status=response.status,
                        retry_after_s=_seconds(response.headers.get("retry-after")),
                    )
                yield response
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(cause_of(error)) from None
        except aiohttp.ConnectionTimeoutError:
            raise self._unreachable("no connection within 5 s") from None
        except aiohttp.InvalidURL:
            raise Failure(f"{self.url!r} is not a URL; expected http://host:port") from None
        except TimeoutError:
            raise Failure(f"the gateway at {self.url} accepted, but never answered") from None
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            raise Failure(f"the gateway at {self.url} broke off its answer") from None
        except aiohttp.ClientError as error:
            what = str(error) or type(error).__name__
            raise Failure(f"the connection to {self.url} broke off: {what}") from None

    def _unreachable(self, reason: str) -> Failure:
        return Failure(
            f"no gateway answers at {self.url} ({reason}); start one with `cortex up`, "
            "or name another with --url or CORTEX_URL"
        )

    def _decoded(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise Failure(
                f"{self.url} does not answer like a cortex gateway of this version: {error}"
            ) from None


def _seconds(retry_after: str | None) -> int | None:
    return int(retry_after) if retry_after and retry_after.isdigit() else None

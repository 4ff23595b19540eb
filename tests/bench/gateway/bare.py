"""A bare pass-through from the gateway's own parts: Starlette, hypercorn and aiohttp, with no
routing, metrics, log or fault handling. What the gateway must not fall behind."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


async def main(listen: str, backend: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

        async def pass_on(request: Request) -> Response:
            answer = await session.request(
                request.method,
                f"http://{backend}{request.url.path}",
                data=await request.body(),
                headers={"Content-Type": "application/json"},
            )

            async def chunks() -> AsyncIterator[bytes]:
                async for chunk in answer.content.iter_any():
                    yield chunk

            headers = {"content-type": answer.headers["content-type"]}
            return StreamingResponse(chunks(), answer.status, headers)

        routes = [Route("/{path:path}", pass_on, methods=["GET", "POST"])]
        config = Config()
        config.bind = [listen]
        config.keep_alive_max_requests = sys.maxsize
        await serve(Starlette(routes=routes), config)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))

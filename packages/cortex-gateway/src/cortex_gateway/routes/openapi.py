"""`GET /openapi.json`: what the gateway answers, for programs."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_gateway.openapi import document

__all__ = ["ROUTES"]


async def show_document(request: Request) -> Response:
    body = await asyncio.to_thread(document)  # the first time it takes a tenth of a second
    return Response(body, media_type="application/json")


ROUTES = [Route("/openapi.json", show_document)]

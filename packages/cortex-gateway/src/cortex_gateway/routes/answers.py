"""JSON answers and error answers of the Starlette routes. An Anthropic client hears of an error in
its own dialect."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cortex_core.errors import (
    CortexError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    render_anthropic,
)
from cortex_gateway.edge import error_body, error_head, speaks_anthropic

__all__ = ["EXCEPTION_HANDLERS", "answer"]


def answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(value), status, media_type="application/json", headers=headers
    )


def _refusal(
    request: Request, error: CortexError, headers: dict[str, str] | None = None
) -> Response:
    is_anthropic = speaks_anthropic(request.scope)
    body = msgspec.json.encode(render_anthropic(error)) if is_anthropic else error_body(error)
    response = Response(body, error.status, headers=headers)
    response.raw_headers.extend(error_head(error))
    return response


async def _on_cortex_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CortexError)
    return _refusal(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, which it raises while routing."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        why = f"{method} is not allowed on {path}; allowed: {allowed}"
        return _refusal(request, MethodNotAllowed(why), {"Allow": allowed})
    return _refusal(request, NotFound(f"no such route: {method} {path}"))


async def _on_bug(request: Request, error: Exception) -> Response:
    return _refusal(request, InternalError("the gateway failed; its log says how"))


EXCEPTION_HANDLERS: dict[Any, Any] = {
    CortexError: _on_cortex_error,
    HTTPException: _on_http_exception,
    Exception: _on_bug,
}

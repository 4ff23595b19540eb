"""HTTP answers: values as JSON, errors in the OpenAI envelope with their status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cortex_core.errors import (
    CortexError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    render_openai,
)
from neuron.models.operations import OperationRecord

__all__ = ["EXCEPTION_HANDLERS", "error_answer", "json_answer", "operation_answer"]


def json_answer(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        msgspec.json.encode(value), status, headers=headers, media_type="application/json"
    )


async def operation_answer(record: OperationRecord, wait: bool) -> Response:
    """The operation: 200 when it is over (or raise its error), 202 while it runs. A client that
    leaves while waiting changes nothing: the operation goes on."""
    if wait:
        await record.ended()
    status = 202 if record.is_running else 200
    return json_answer(record.report(), status, {"location": f"/operations/{record.id}"})


def error_answer(error: CortexError, headers: Mapping[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_answer(render_openai(error), error.status, headers)


def _typed(request: Request, error: Exception) -> Response:
    assert isinstance(error, CortexError)
    return error_answer(error)


def _of_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        return error_answer(NotFound(f"no such route: {request.method} {path}"))
    if error.status_code == 405:
        return error_answer(
            MethodNotAllowed(f"{request.method} is not allowed on {path}"), error.headers
        )
    if error.status_code < 500:
        return error_answer(InvalidRequest(error.detail), error.headers)
    return _unforeseen(request, error)


def _unforeseen(request: Request, error: Exception) -> Response:
    # The traceback is logged by the edge, which sees the exception too.
    return error_answer(InternalError("an internal error; the neuron's log has the cause"))


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


EXCEPTION_HANDLERS = {
    CortexError: _typed,
    HTTPException: _of_framework,
    ClientDisconnect: _gone,
    Exception: _unforeseen,
}

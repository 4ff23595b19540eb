"""`/v1/responses/{id}`: responses that were kept. (Making one is the hot path's.)"""

from __future__ import annotations

from typing import Any

from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.errors import InvalidRequest, NotFound, UnsupportedParameter
from cortex_core.translate.responses_input import Item
from cortex_gateway.response_store import ResponseStore, Stored
from cortex_gateway.routes.answers import answer

__all__ = ["ROUTES"]

_MOST_LISTED = 100
_LISTED = 20


class KeptResponse(HTTPEndpoint):
    """One route for its methods, so that another method is told all of them."""

    async def get(self, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise UnsupportedParameter("stream: a kept response is given whole", param="stream")
        return answer(_found(request).response)

    async def delete(self, request: Request) -> Response:
        name = request.path_params["response"]
        if not await _store(request).forget(name):
            raise _missing(name)
        return answer({"id": name, "object": "response", "deleted": True})


async def list_input_items(request: Request) -> Response:
    """`limit` (1 to 100), `order` (newest first unless `asc`), `after` (an item's id)."""
    query = request.query_params
    stored = _found(request)
    items = [_shown(item, f"{request.path_params['response']}_{index}") for index, item in
             enumerate(stored.conversation)]  # fmt: skip
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order: expected asc or desc, got {order!r}", param="order")
    if order == "desc":
        items.reverse()
    if after := query.get("after"):
        places = [index for index, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequest(f"after: no item {after!r} is listed", param="after")
        items = items[places[0] + 1 :]
    limit = _limit(query.get("limit"))
    page = items[:limit]
    return answer(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


async def cancel_response(request: Request) -> Response:
    _found(request)
    raise InvalidRequest("only a response made in the background can be cancelled")


def _store(request: Request) -> ResponseStore:
    return request.app.state.gateway.responses


def _found(request: Request) -> Stored:
    name = request.path_params["response"]
    stored = _store(request).find(name)
    if stored is None:
        raise _missing(name)
    return stored


def _missing(name: str) -> NotFound:
    return NotFound(f"no response {name!r} is stored", param="response_id")


def _limit(text: str | None) -> int:
    try:
        limit = int(text or _LISTED)
    except ValueError:
        limit = 0
    if not 1 <= limit <= _MOST_LISTED:
        problem = f"limit: expected 1 to {_MOST_LISTED}, got {text!r}"
        raise InvalidRequest(problem, param="limit")
    return limit


def _shown(item: Item, name: str) -> dict[str, Any]:
    """With an id, and text as parts, as lists of items have them."""
    shown = {"type": "message", "id": name} | item
    if shown["type"] == "message":
        kind = "output_text" if shown["role"] == "assistant" else "input_text"
        if isinstance(shown.get("content"), str):
            shown["content"] = [{"type": kind, "text": shown["content"]}]
        shown.setdefault("status", "completed")
    return shown


_PATH = "/v1/responses/{response}"
ROUTES = [
    Route(_PATH, KeptResponse),
    Route(f"{_PATH}/input_items", list_input_items, methods=["GET"]),
    Route(f"{_PATH}/cancel", cancel_response, methods=["POST"]),
]

"""`GET /v1/models` as Anthropic's clients read it: pages of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from cortex_core.envelopes.models import ListedModel
from cortex_core.errors import InvalidRequest

__all__ = ["MOST_LISTED", "ModelInfo", "ModelPage", "model_info", "page_of"]

_LISTED = 20
MOST_LISTED = 1000
_UNKNOWN_DATE = "1970-01-01T00:00:00Z"  # the vendor's word where a date is not known


class ModelInfo(msgspec.Struct, frozen=True):
    """`max_input_tokens` and `max_tokens` are None where nothing is known; `id` as it is asked
    for."""

    id: str
    display_name: str
    max_input_tokens: int | None
    max_tokens: int | None
    capabilities: None = None
    created_at: str = _UNKNOWN_DATE
    lifecycle: Literal["active"] = "active"
    type: Literal["model"] = "model"


class ModelPage(msgspec.Struct, frozen=True):
    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


def model_info(model: ListedModel) -> ModelInfo:
    """An answer may take all of the context that its prompt leaves, unless the operator says how
    much."""
    context = model.limit.context or None
    return ModelInfo(model.id, model.id, context, model.limit.output or context)


def page_of(
    models: Sequence[ListedModel],
    *,
    limit: str | None = None,
    after_id: str | None = None,
    before_id: str | None = None,
    lifecycle: Sequence[str] = (),
) -> ModelPage:
    """The page of `models` that the query's parameters ask for. Every model is `active`.

    Raises InvalidRequest that names the parameter.
    """
    size = _size(limit)
    if after_id and before_id:
        raise InvalidRequest("before_id: cannot be given together with after_id", param="before_id")
    names = [model.id for model in models]
    if lifecycle and "active" not in lifecycle:
        models = []
    elif after_id:
        models = models[_place(names, after_id, "after_id") + 1 :]
    elif before_id:
        models = models[: _place(names, before_id, "before_id")]
    page = models[-size:] if before_id else models[:size]
    return ModelPage(
        [model_info(model) for model in page],
        len(page) < len(models),
        page[0].id if page else None,
        page[-1].id if page else None,
    )


def _size(limit: str | None) -> int:
    if limit is None:
        return _LISTED
    if limit.isascii() and limit.isdigit() and 1 <= int(limit) <= MOST_LISTED:
        return int(limit)
    raise InvalidRequest(f"limit: expected 1 to {MOST_LISTED}, got {limit!r}", param="limit")


def _place(names: list[str], name: str, param: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise InvalidRequest(f"{param}: no model {name!r} is listed", param=param) from None

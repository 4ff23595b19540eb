"""Text as OpenAI's older routes take it: a string, a list of strings, or the same as token ids."""

from __future__ import annotations

from typing import Annotated, cast

import msgspec

from cortex_core.errors import InvalidRequest

__all__ = ["Inputs", "TokenId", "each_input"]

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]

Inputs = str | list[str | TokenId | list[TokenId]]
"""One text, one text as token ids, or several of one of the two."""


def each_input(
    value: Inputs, param: str, *, most: int, may_be_empty: bool = False
) -> list[str | list[int]]:
    """One entry per text. Raises InvalidRequest (`param`) for kinds mixed, for more than `most`,
    and, unless it `may_be_empty`, for an empty text."""
    if isinstance(value, str):
        if not (value or may_be_empty):
            raise InvalidRequest(f"{param}: must not be empty", param=param)
        return [value]
    if not value:
        raise InvalidRequest(f"{param}: must not be empty", param=param)
    kinds = {type(item) for item in value}
    if len(kinds) > 1:
        raise InvalidRequest(
            f"{param}: expected strings, token ids, or lists of token ids, got a mixture of them",
            param=param,
        )
    if kinds == {int}:
        return [cast("list[int]", value)]
    if len(value) > most:
        raise InvalidRequest(
            f"{param}: at most {most} in one request, got {len(value)}", param=param
        )
    texts = cast("list[str | list[int]]", value)
    if not may_be_empty:
        for index, text in enumerate(texts):
            if not text:
                at = f"{param}[{index}]"
                raise InvalidRequest(f"{at}: must not be empty", param=at)
    return texts

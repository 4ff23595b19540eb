"""Who may administer: whoever has the token, or, where there is none, whoever can connect; but no
web page that a browser connects for."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping

from cortex_core.config.files import read_token
from cortex_core.errors import Forbidden, InvalidApiKey

__all__ = ["Guard"]

_SAFE = frozenset({"GET", "HEAD"})


class Guard:
    """`token_file`: see `gateway.admin_token_file`; `origins`: of the pages that may administer
    without a token, each by its name. Raises ConfigError."""

    def __init__(self, token_file: str | None, origins: Iterable[str] = ()) -> None:
        self._token = None if token_file is None else read_token(token_file).encode()
        self._origins = frozenset(origins) - {"*"}

    def is_like(self, other: Guard) -> bool:
        """Whether both want the same token."""
        return self._token == other._token

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """`headers`: by their names in lower case. Raises InvalidApiKey or Forbidden."""
        if self._token is None:
            if method not in _SAFE:
                self._check_origin(headers.get("origin"))
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode(), self._token):
            raise InvalidApiKey("administration needs the gateway's admin token as a bearer token")

    def _check_origin(self, origin: str | None) -> None:
        """Any page can have its reader's browser send an order here, and browsers say which page
        it was. The gateway has no pages, so that none is its own."""
        if origin is not None and origin not in self._origins:
            raise Forbidden(
                f"a web page ({origin!r}) may not administer: set an admin token "
                "(gateway.admin_token_file), or list the page in gateway.cors_origins"
            )

"""Who may administer: whoever has the token, or, where there is none, whoever can connect."""

from __future__ import annotations

import hmac

from cortex_core.config.files import read_token
from cortex_core.errors import InvalidApiKey

__all__ = ["Guard"]


class Guard:
    """`token_file`: see `gateway.admin_token_file`. Raises ConfigError."""

    def __init__(self, token_file: str | None) -> None:
        self._token = None if token_file is None else read_token(token_file).encode()

    def check(self, authorization: str | None) -> None:
        """Raises InvalidApiKey."""
        if self._token is None:
            return
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode(), self._token):
            raise InvalidApiKey("administration needs the gateway's admin token as a bearer token")

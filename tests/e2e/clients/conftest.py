"""Clients as their makers ship them, which ask nobody but the gateway.

Some would look for updates of a price list or for somebody to report to; the environment tells them
not to before they are imported, and a test fails whose client asks for another host all the same.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.update(
    {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
        "LANGCHAIN_TRACING_V2": "false",
    }
)
LOOPBACK = ("127.0.0.1", "localhost", "::1", None)


@pytest.fixture(autouse=True)
def no_other_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    look_up = socket.getaddrinfo
    others: list[Any] = []

    def watched(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in LOOPBACK:
            others.append(host)
            raise OSError(f"a test's client asks for {host!r}")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    yield
    assert others == []

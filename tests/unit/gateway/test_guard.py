"""Who may administer, and which settings of that are refused at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex_core.config.gateway import load_gateway_config
from cortex_core.config.loader import ConfigError
from cortex_core.errors import Forbidden, InvalidApiKey
from cortex_gateway.guard import Guard


def test_without_a_token_anybody_may() -> None:
    Guard(None).check("POST", {})


PAGE = {"origin": "https://page.example"}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:31313", ""])
def test_without_a_token_no_web_page_may_change_anything(origin: str) -> None:
    """Not even one of the gateway's own name, which it does not have: a name of somebody else's
    can be made to resolve to any address."""
    for guard in (Guard(None), Guard(None, ["*"]), Guard(None, ["https://page.example"])):
        with pytest.raises(Forbidden, match=r"admin_token_file.*cors_origins"):
            guard.check("POST", {"origin": origin})
        guard.check("GET", {"origin": origin})


def test_without_a_token_a_page_that_is_listed_may() -> None:
    Guard(None, ["https://page.example"]).check("POST", PAGE)


def test_with_a_token_a_page_that_has_it_may(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n", "utf-8")
    guard = Guard(str(tmp_path / "token"))
    guard.check("POST", PAGE | {"authorization": "Bearer secret"})
    with pytest.raises(InvalidApiKey):
        guard.check("POST", PAGE)


def test_with_a_token_only_its_bearer_may(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n", "utf-8")
    guard = Guard(str(tmp_path / "token"))
    guard.check("POST", {"authorization": "Bearer secret"})
    guard.check("GET", {"authorization": "bearer secret"})
    for wrong in (None, "", "secret", "Bearer", "Bearer secret2", "Bearer sécret", "Basic secret"):
        with pytest.raises(InvalidApiKey):
            guard.check("GET", {} if wrong is None else {"authorization": wrong})


def test_a_token_file_without_a_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    with pytest.raises(ConfigError, match="expected one line with a bearer token"):
        Guard(str(tmp_path / "token"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('admin_token_file = "/no/such/file"', "gateway.admin_token_file: no such file"),
        ('admin_listen = "nowhere"', "gateway.admin_listen: expected host:port"),
        ("load_stall_s = 0", "gateway.load_stall_s: expected"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "cortex.toml").write_text(f"[gateway]\n{line}\n", "utf-8")
    with pytest.raises(ConfigError, match=problem):
        load_gateway_config(tmp_path / "cortex.toml", environment={})

"""`cortex render`: how a prompt and its tokens are shown, and what is no request."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cortex_cli.app import cortex
from cortex_cli.commands.render import Rendered, Token, lines


def test_every_token_is_a_line_with_place_id_and_visible_text() -> None:
    tokens = [Token(151644, "<user>\n"), Token(6, " h\x85"), Token(7, [240, 159]), Token(8, "é")]
    assert lines(Rendered("<user>\nhi \x1b[2J", 4, tokens)) == [
        "<user>\nhi \ufffd[2J",
        "",
        '     0   151644  "<user>\\n"',
        '     1        6  " h\ufffd"',
        "     2        7  bytes f0 9f",
        '     3        8  "é"',
    ]


def _run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cortex, ["render", *arguments], input=stdin)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not valid JSON"), ('"hi"', "neither"), ("[" * 100_000, "not valid")]
)
def test_what_is_no_request_is_wrong_usage(text: str, said: str) -> None:
    result = _run("m", "-", "--url", "http://127.0.0.1:1", stdin=text)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    assert _run("m", str(tmp_path / "none.json")).exit_code == 2

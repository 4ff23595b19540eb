"""Exit codes and error lines, without a gateway."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cortex_cli.app import cortex
from cortex_cli.commands.load import absolute
from cortex_cli.terminal import plain


def _run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> Result:
    return CliRunner().invoke(cortex, arguments, env=env, input=stdin)


@pytest.fixture
def closed_url() -> Iterator[str]:
    """A URL where nothing listens: the port is held, but not listened on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


COMMANDS = [
    ("status",),
    ("status", "--json"),
    ("models",),
    ("load", "x"),
    ("unload", "x"),
    ("pin", "x"),
    ("unpin", "x"),
    ("drain", "x"),
    ("undrain", "x"),
    ("reload",),
    ("explain", "placement", "x"),
    ("explain", "request", "x"),
    ("chat", "hi"),
    ("chat", "-m", "x", "hi"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_unreachable_gateway_is_one_line_with_url_and_advice(
    command: tuple[str, ...], closed_url: str
) -> None:
    result = _run(*command, "--url", closed_url)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    for part in (closed_url, "connection refused", "cortex up", "CORTEX_URL"):
        assert part in result.stderr


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_is_taken_as_people_paste_it(suffix: str, closed_url: str) -> None:
    pasted = closed_url.removeprefix("http://") + suffix
    result = _run("status", env={"CORTEX_URL": pasted})
    assert f"at {closed_url} (" in result.stderr


def test_a_url_of_another_kind_is_wrong_usage() -> None:
    assert _run("status", "--url", "ftp://x").exit_code == 2


def test_a_host_that_does_not_exist_is_named() -> None:
    result = _run("status", "--url", "http://no-such-host.invalid:1")
    assert result.exit_code == 1
    assert "no-such-host.invalid" in result.stderr


def test_an_unknown_command_is_wrong_usage() -> None:
    assert _run("dance").exit_code == 2


def test_every_command_has_help() -> None:
    groups = ("config check", "explain placement", "explain request")
    for name in (*cortex.list_commands(None), *groups):  # type: ignore[arg-type]
        result = _run(*name.split(), "--help")
        assert (name, result.exit_code) == (name, 0)


def test_the_exit_codes_are_in_the_help() -> None:
    assert "Exit codes" in _run("--help").stdout


@pytest.fixture
def gateway_toml(tmp_path: Path) -> Path:
    return tmp_path / "cortex.toml"


def test_a_good_configuration_passes_the_check(gateway_toml: Path) -> None:
    gateway_toml.write_text('[[neurons]]\nname = "a"\nendpoint = "http://a:1"\n')
    result = _run("config", "check", str(gateway_toml))
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{gateway_toml}: ok" in result.stdout
    assert "neurons: a" in result.stdout


def test_the_catalogue_is_checked_with_the_gateways_file(gateway_toml: Path) -> None:
    gateway_toml.write_text('[gateway]\nmodels = "models.toml"\n')
    catalogue = gateway_toml.with_name("models.toml")
    catalogue.write_text('[[models]]\nid = "org/m"\n')
    assert "models: org/m" in _run("config", "check", str(gateway_toml)).stdout
    catalogue.write_text('[[models]]\nid = "org/m"\ncontxt = 1\n')
    result = _run("config", "check", str(gateway_toml))
    assert result.exit_code == 2
    assert f"{catalogue}: models[0].contxt: unknown key" in result.stderr


def test_a_good_neuron_configuration_passes_the_check(tmp_path: Path) -> None:
    path = tmp_path / "neuron.toml"
    path.write_text('[[default_models]]\nid = "cortex/tiny"\n')
    result = _run("config", "check", "--neuron", str(path))
    assert result.exit_code == 0
    assert "cortex/tiny" in result.stdout


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ('[gateway]\nlistn = "x:1"\n', "gateway.listn: unknown key; did you mean 'listen'?"),
        ("[gateway]\ndrain_s = 'x'\n", "gateway.drain_s: expected"),
        ('[gateway]\nlisten = "nowhere"\n', "gateway.listen: expected host:port"),
        ("[gateway\n", "not valid TOML"),
        ('[[neurons]]\nname = "a"\n', "neurons[0].endpoint"),
    ],
)
@pytest.mark.parametrize("command", [("config", "check"), ("serve", "--config")], ids=" ".join)
def test_a_bad_configuration_is_one_line_naming_file_and_key(
    command: tuple[str, ...], text: str, culprit: str, gateway_toml: Path
) -> None:
    gateway_toml.write_text(text)
    result = _run(*command, str(gateway_toml))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert str(gateway_toml) in result.stderr
    assert culprit in result.stderr


def test_a_missing_configuration_file_is_named(gateway_toml: Path) -> None:
    result = _run("serve", "--config", str(gateway_toml))
    assert result.exit_code == 2
    assert f"{gateway_toml}: no such file" in result.stderr


def test_a_misspelt_variable_is_named(gateway_toml: Path) -> None:
    gateway_toml.write_text("")
    result = _run("config", "check", str(gateway_toml), env={"CORTEX_GATEWAY__LISTN": "x:1"})
    assert result.exit_code == 2
    assert "CORTEX_GATEWAY__LISTN" in result.stderr


def test_a_bad_listen_flag_is_named(gateway_toml: Path) -> None:
    gateway_toml.write_text("")
    result = _run("serve", "--config", str(gateway_toml), "--listen", "nowhere")
    assert result.exit_code == 2
    assert "gateway.listen" in result.stderr
    assert "nowhere" in result.stderr


def test_up_refuses_a_port_that_is_taken_before_starting_anything() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = _run("up", "--port", str(port))
    assert result.exit_code == 1
    assert f"127.0.0.1:{port}: address already in use" in result.stderr
    assert "--port" in result.stderr


def test_chat_with_nothing_to_ask_is_wrong_usage() -> None:
    result = _run("chat", stdin="")
    assert result.exit_code == 2
    assert "nothing to ask" in result.stderr


def test_only_a_path_that_says_so_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("./a.gguf") == str(tmp_path / "a.gguf")
    assert absolute("org/name") == "org/name"
    assert absolute("/m/a.gguf") == "/m/a.gguf"


def test_control_codes_are_replaced_and_newlines_kept() -> None:
    assert plain("a\x1b]0;x\x07b\r\n\tc\x9b") == "a\ufffd]0;x\ufffdb\ufffd\n\tc\ufffd"

"""The client commands against a running gateway."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.cli.running import Cortex, Up
from tests.processes import clean_environment

ESCAPE = "\x1b"
GREEDY = ("--temperature", "0")  # so that it is certain that the babbler goes on for seconds
QUESTION = "What is the capital of France?"


def test_what_up_prints_can_be_pasted(up: Up) -> None:
    (curl,) = (line for line in up.output.splitlines() if line.startswith("curl "))
    answer = subprocess.run(
        ["sh", "-c", curl], capture_output=True, text=True, timeout=30, check=True
    )
    assert "Paris" in answer.stdout
    assert f"cortex chat --url {up.url()}" in up.output
    (metrics,) = (line.split()[0] for line in up.output.splitlines() if line.endswith("  metrics"))
    with urllib.request.urlopen(metrics, timeout=10) as response:
        assert b"cortex" in response.read()


def test_status_for_programs_is_json_and_nothing_else(cortex: Cortex) -> None:
    done = cortex("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (node,) = json.loads(done.stdout)["nodes"]
    assert node["reachable"] is True
    assert node["state"]["devices"]
    assert [model["id"] for model in node["state"]["models"]] == ["cortex/tiny"]


def test_status_for_people_has_node_device_and_model(cortex: Cortex) -> None:
    done = cortex("status")
    assert done.returncode == 0
    assert "1 of 1 nodes reachable, 0 in flight" in done.stdout
    assert re.search(r"^local +ready +\S+", done.stdout, re.MULTILINE)
    assert re.search(r"^cortex/tiny +local +\S+ +ready", done.stdout, re.MULTILINE)
    assert ESCAPE not in done.stdout


def test_models_lists_what_is_ready(cortex: Cortex) -> None:
    done = cortex("models")
    assert done.returncode == 0
    assert re.search(r"^cortex/tiny +ready +local", done.stdout, re.MULTILINE)


def test_models_for_programs_is_the_body_of_v1_models(cortex: Cortex) -> None:
    listed = json.loads(cortex("models", "--json").stdout)
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["cortex/tiny"]


def test_chat_answers_once_and_only_the_answer_goes_into_the_pipe(cortex: Cortex) -> None:
    done = cortex("chat", *GREEDY, "--no-think", QUESTION)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert ESCAPE not in done.stdout + done.stderr
    assert re.search(r"\d+ tokens · first after", done.stderr)


def test_chat_puts_reasoning_beside_the_pipe(cortex: Cortex) -> None:
    done = cortex("chat", *GREEDY, QUESTION)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "think>" not in done.stdout
    reasoning, _, _ = done.stderr.rpartition(" tokens · ")
    assert len(reasoning.strip().splitlines()) > 1


@pytest.mark.parametrize("command", [("chat", QUESTION), ("status",), ("models", "--json")])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line_and_no_success(
    cortex: Cortex, command: tuple[str, ...], unbuffered: str
) -> None:
    environment = {"CORTEX_URL": cortex.url, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cortex_cli", *command],
            env=clean_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    *reasoning, last = done.stderr.splitlines()
    assert last == "error: no space left on device"
    assert not any("Traceback" in line for line in reasoning)


def test_chat_takes_a_piped_message(cortex: Cortex) -> None:
    done = cortex("chat", *GREEDY, "--no-think", stdin=f"{QUESTION}\n")
    assert "Paris" in done.stdout


def test_chat_with_an_unknown_model_fails_with_the_servers_message(cortex: Cortex) -> None:
    done = cortex("chat", "--model", "no/such", QUESTION)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no/such" in done.stderr
    assert "[model_not_found]" in done.stderr


def test_a_second_model_is_loaded_by_path_used_and_unloaded(
    cortex: Cortex, models_dir: Path
) -> None:
    path = str(models_dir / "second.gguf")
    options = ["--context", "512", "--parallel", "2", "--kv-type", "q8_0", "--kv", "unified"]
    loaded = cortex("load", path, *options, "--cells", "768", "--gpu-layers", "-1")
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.startswith("loaded ")
    assert "on local" in loaded.stdout
    assert "2 x 512 tokens in q8_0" in loaded.stdout
    assert loaded.stderr.startswith(f"loading {path}")
    assert len(loaded.stderr.splitlines()) == 1

    listed = json.loads(cortex("models", "--json").stdout)["data"]
    (second,) = (entry["id"] for entry in listed if entry["id"] != "cortex/tiny")
    answer = cortex("chat", "-m", second, *GREEDY, "--no-think", QUESTION)
    assert "Paris" in answer.stdout, answer.stderr

    unloaded = cortex("unload", second)
    assert unloaded.returncode == 0, unloaded.stderr
    assert unloaded.stdout.startswith(f"unloaded {second} from local")
    assert second not in cortex("models").stdout


@pytest.mark.parametrize(
    ("file", "code"), [("absent.gguf", "gguf_missing"), ("corrupt.gguf", "gguf_corrupt")]
)
def test_a_load_that_fails_says_why(cortex: Cortex, models_dir: Path, file: str, code: str) -> None:
    done = cortex("load", str(models_dir / file))
    assert done.returncode == 1
    assert done.stdout == ""
    assert file in done.stderr
    assert f"[{code}]" in done.stderr


def test_a_load_on_an_unknown_node_names_it(cortex: Cortex) -> None:
    done = cortex("load", "cortex/tiny", "--node", "nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr


def test_unloading_what_is_not_loaded_fails(cortex: Cortex) -> None:
    done = cortex("unload", "no/such")
    assert done.returncode == 1
    assert "no/such" in done.stderr


def test_a_drained_node_gets_nothing_until_it_is_taken_back(cortex: Cortex) -> None:
    drained = cortex("drain", "local")
    assert drained.returncode == 0
    assert "not written down (gateway.state_dir)" in drained.stderr
    assert "draining" in cortex("status").stdout
    refused = cortex("chat", "-m", "cortex/tiny", QUESTION)
    assert refused.returncode == 1
    assert "drain" in refused.stderr
    assert cortex("undrain", "local").returncode == 0
    assert "Paris" in cortex("chat", *GREEDY, "--no-think", QUESTION).stdout


def test_a_pin_is_shown_and_taken_out(cortex: Cortex) -> None:
    pinned = cortex("pin", "cortex/tiny")
    assert (pinned.returncode, "not written down" in pinned.stderr) == (0, True)
    assert "cortex/tiny (pinned)" in cortex("status").stdout
    assert cortex("unpin", "cortex/tiny").returncode == 0
    assert "pinned" not in cortex("status").stdout
    unknown = cortex("pin", "no/such")
    assert (unknown.returncode, "[model_not_found]" in unknown.stderr) == (1, True)


def test_explain_says_where_a_model_is_and_what_was_considered(cortex: Cortex) -> None:
    done = cortex("explain", "placement", "cortex/tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cortex/tiny is ready on local\n")
    raw = json.loads(cortex("explain", "placement", "cortex/tiny", "--json").stdout)
    assert raw["ready_on"] == ["local"]


def test_explain_tells_a_requests_story_by_its_id(cortex: Cortex) -> None:
    body = {"model": "cortex/tiny", "messages": [{"role": "user", "content": QUESTION}]}
    request = urllib.request.Request(
        cortex.url + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"x-request-id": "explained-1", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200
    done = cortex("explain", "request", "explained-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("explained-1: ok, HTTP 200 by local")
    assert "sent to local" in done.stdout
    unknown = cortex("explain", "request", "nobodys")
    assert (unknown.returncode, "[not_found]" in unknown.stderr) == (1, True)


def test_a_reload_of_the_same_files_changes_nothing(cortex: Cortex) -> None:
    done = cortex("reload")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nothing has changed\n"


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *arguments: str, url: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cortex_cli", *arguments],
            env=clean_environment({"CORTEX_URL": url, "TERM": "xterm"}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: _take_terminal(slave),
        )
        os.close(slave)
        self.seen = ""
        self._read = 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str, timeout_s: float = 20) -> str:
        """What came up to and with the next match."""
        deadline_s = time.monotonic() + timeout_s
        while not (match := re.compile(pattern).search(self.seen, self._read)):
            assert time.monotonic() < deadline_s, f"no {pattern!r} in {self.seen!r}"
            self._more(0.1)
        came = self.seen[self._read : match.end()]
        self._read = match.end()
        return came

    def interrupt(self, pattern: str) -> None:
        """Ctrl-C until the match comes, as a person would press it again: one that arrives while
        input() has printed its prompt and does not yet wait for keys is noticed at the next key."""
        for _ in range(20):
            self.type("\x03")
            try:
                self.until(pattern, 0.5)
            except AssertionError:
                continue
            return
        raise AssertionError(f"20 interrupts, and no {pattern!r} in {self.seen!r}")

    def ended(self) -> int:
        while self._more(0.1):
            pass
        return self.process.wait(20)

    def _more(self, wait_s: float) -> bool:
        if not select.select([self._master], [], [], wait_s)[0]:
            return self.process.poll() is None
        try:
            chunk = os.read(self._master, 65536)
        except OSError:
            return False  # the other side is closed
        self.seen += chunk.decode("utf-8", "replace")
        return bool(chunk)


def _take_terminal(slave: int) -> None:
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job inherits it ignored
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def test_an_interactive_chat_answers_and_leaves_at_ctrl_d(cortex: Cortex) -> None:
    terminal = Terminal("chat", *GREEDY, url=cortex.url)
    terminal.until("> ")
    terminal.type(f"{QUESTION}\n")
    came = terminal.until("tokens · first after .*\n")
    assert "Paris" in came
    assert f"{ESCAPE}[2;3m" in came, "reasoning is dimmed"
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.ended() == 0


def test_ctrl_c_at_the_prompt_does_not_leave(cortex: Cortex) -> None:
    terminal = Terminal("chat", url=cortex.url)
    terminal.until(r"\n> ")
    terminal.interrupt("Ctrl-D leaves")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.ended() == 0
    assert "Traceback" not in terminal.seen


def test_ctrl_c_stops_the_answer_and_not_the_program(cortex: Cortex, models_dir: Path) -> None:
    babbler = str(models_dir / "babbler.gguf")
    assert cortex("load", babbler).returncode == 0
    terminal = Terminal("chat", *GREEDY, "--model", babbler, url=cortex.url)
    terminal.until(r"\n> ")
    for _ in range(2):
        terminal.type("Go on.\n")
        terminal.until(r"Go on\.\r\n.*[a-z]{8}")
        terminal.interrupt("stopped")
        terminal.until(r"\n> ")
    terminal.type("\x04")
    assert terminal.ended() == 0
    assert "Traceback" not in terminal.seen
    assert cortex("unload", babbler).returncode == 0


def test_a_load_on_a_terminal_shows_its_progress(cortex: Cortex, models_dir: Path) -> None:
    path = (
        models_dir / f"{'a-long-name-' * 6}that-fills-the-line.gguf"
    )  # and 80 columns hold no more
    shutil.copy(models_dir / "second.gguf", path)
    terminal = Terminal("load", str(path), url=cortex.url)
    assert terminal.ended() == 0
    assert "loading /" in terminal.seen
    assert "100%" in terminal.seen
    assert f"loaded {path}" in terminal.seen.replace("\r\n", "")
    assert cortex("unload", str(path)).returncode == 0


def test_status_on_a_terminal_is_coloured(cortex: Cortex) -> None:
    terminal = Terminal("status", url=cortex.url)
    assert terminal.ended() == 0
    assert ESCAPE in terminal.seen


def test_an_answer_that_breaks_off_is_an_error_and_not_an_answer(
    cortex: Cortex, models_dir: Path
) -> None:
    babbler = str(models_dir / "babbler.gguf")
    assert cortex("load", babbler).returncode == 0
    (node,) = json.loads(cortex("status", "--json").stdout)["nodes"]
    worker = node["state"]["devices"][0]["worker"]["pid"]
    terminal = Terminal("chat", *GREEDY, "--model", babbler, "Go on.", url=cortex.url)
    terminal.until("[a-z]{8}")
    os.kill(worker, signal.SIGKILL)
    assert terminal.ended() == 1
    assert "error: " in terminal.seen
    assert "[upstream_failed]" in terminal.seen

"""`cortex render` against a running gateway."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.e2e.cli.running import Cortex

MODEL = "cortex/tiny"
MESSAGES = [{"role": "user", "content": "Say hi 👋"}]
PROMPT = "<|im_start|>user\nSay hi 👋<|im_end|>\n<|im_start|>assistant\n"


def _bytes(piece: str) -> bytes:
    if piece.startswith("bytes "):
        return bytes.fromhex(piece.removeprefix("bytes "))
    return json.loads(piece).encode()


def test_the_prompt_of_a_list_of_messages_is_shown_token_by_token(cortex: Cortex) -> None:
    done = cortex("render", MODEL, "-", stdin=json.dumps(MESSAGES))
    assert done.returncode == 0, done.stderr
    prompt, _, tokens = done.stdout.rpartition("\n\n")
    assert prompt == PROMPT
    shown = [re.fullmatch(r" *(\d+) +(\d+)  (.*)", line) for line in tokens.splitlines()]
    assert [match and match[1] for match in shown] == [str(n) for n in range(len(shown))]
    assert done.stderr == f"{len(shown)} tokens\n"
    text = b"".join(_bytes(match[3]) for match in shown if match)
    assert text.decode() == PROMPT


def test_a_request_from_a_file_is_rendered_with_all_it_says(cortex: Cortex, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    request = {"model": "another", "messages": MESSAGES, "enable_thinking": False}
    path.write_text(json.dumps(request))
    done = cortex("render", MODEL, str(path), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rendered = json.loads(done.stdout)
    assert rendered["prompt"] == PROMPT + "<think>\n\n</think>\n\n"
    assert rendered["count"] == len(rendered["tokens"])


def test_a_refusal_is_one_line_with_its_code(cortex: Cortex) -> None:
    done = cortex("render", "nobody/nothing", "-", stdin=json.dumps(MESSAGES))
    assert (done.returncode, done.stdout) == (1, "")
    assert "[model_not_found]" in done.stderr

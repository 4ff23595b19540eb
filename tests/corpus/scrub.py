"""Requests of coding agents without their words: `python -m tests.corpus.scrub PROGRAM NAME`.

Reads a request as it was recorded (`path`, `headers` and `body`, a JSON object) and writes
agents/NAME.json. Keys, types, nesting, order, names of tools and headers and what a schema allows
stay; whatever is text becomes other text, as most of it is somebody's work, and long text becomes
short, so that it fits a small context. Ids and paths become ones that tell of no machine.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "agents"
LEFT_OUT = {
    "accept-encoding", "accept-language", "authorization", "connection", "content-length", "cookie",
    "host", "sec-fetch-mode", "user-agent", "x-api-key",
}  # fmt: skip
# Of a schema: what it allows.
KEPT = {"const", "enum", "format", "pattern", "required"}
MOST = 240
MOST_OF = {"description": 40}
FILLER = "a file of the shop is read and its lines are told in order before the next step"
ATTRIBUTION = "x-anthropic-billing-header:"

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32,}")
_PATH = re.compile(r"/(tmp|root|home)(/[\w.-]+)*(?=/[\w.-]+)")  # but for its last part
_TAGGED = re.compile(r"<([a-z_-]+)>\s.*", re.DOTALL)


class Scrubber:
    """Of one request: the same id becomes the same id."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._ids: dict[str, str] = {}

    def value(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._member(name, each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.value(each, key) for each in value]
        return self._text(value, key) if isinstance(value, str) else value

    def _member(self, name: str, value: Any) -> Any:
        if name == "model" and isinstance(value, str):
            return self._model
        if name == "definition" and isinstance(value, str):
            return 'start: "*** Begin Patch"'
        is_rule = name in KEPT and not isinstance(value, dict)  # and no property of that name
        return value if is_rule else self.value(value, name)

    def _text(self, text: str, key: str) -> str:
        if text.startswith(("{", "[")):
            try:
                return json.dumps(self.value(json.loads(text)))
            except ValueError:
                pass
        if text.startswith(ATTRIBUTION):
            return text
        if not re.search(r"\s", text.strip()):
            return _PATH.sub("/home/dev/shop", _ID.sub(lambda found: self._id(found[0]), text))
        told = _words(min(len(text), MOST_OF.get(key, MOST)))
        tag = _TAGGED.fullmatch(text)
        return f"<{tag[1]}>\n{told}\n</{tag[1]}>" if tag else told

    def _id(self, name: str) -> str:
        number = len(self._ids) + 1
        digits = f"{number:032x}"
        if "-" in name:
            digits = f"{number:08x}-0000-4000-8000-000000000000"
        return self._ids.setdefault(name, digits)


def _words(length: int) -> str:
    """Of at least one word and at most about this length."""
    text = ""
    for word in itertools.cycle(FILLER.split()):
        if text and len(text) + 1 + len(word) > length:
            return text
        text = f"{text} {word}".lstrip()
    raise AssertionError


def main() -> None:
    program, name = sys.argv[1:]
    record = json.load(sys.stdin)
    scrubber = Scrubber("cortex/tiny")
    headers = {key.lower(): value for key, value in record["headers"].items()}
    entry = {
        "program": program,
        "path": record["path"],
        "headers": {
            key: scrubber.value(value) for key, value in headers.items() if key not in LEFT_OUT
        },
        "body": scrubber.value(record["body"]),
    }
    text = json.dumps(entry, indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()

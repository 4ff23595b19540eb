"""Make `uv.lock` index-neutral: the same lock serves whoever resolves from whichever index.

uv writes the address of the index it resolved from into every entry, and what that one says of a
file besides its hash: its size, and when it was uploaded, where it says so. The index is the
operator's own business (a mirror, a proxy, an offline folder), so neither belongs in the tree.
Names, versions and hashes stay. `uv sync` accepts such a lock, keeps its versions, and writes the
rest back in; `make setup` and `make lock` call this afterwards.

Usage: python tools/lock.py [--check] [uv.lock]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["hosts_in", "neutralise"]

_REGISTRY = re.compile(r'registry = "[^"]*"')
_URL = re.compile(r'url = "[^"]*/([^"/#]+)(?:#[^"]*)?"')
_FOLDER_PATH = re.compile(r'path = "[^"]*/([^"/]+)"')
_ASIDE = re.compile(r', (?:size = \d+|upload-time = "[^"]*")')
_MANIFEST = re.compile(r"^\[manifest\]\n(?:(?!\[).*\n)*", re.MULTILINE)
_HOST = re.compile(r"[a-z]+://[^\s\"]*")


def neutralise(text: str) -> str:
    """The lock's text without any address, or anything else that is its index's to say."""
    text = _MANIFEST.sub("", text)
    text = _ASIDE.sub("", text)
    text = _REGISTRY.sub('registry = "index"', text)
    text = _URL.sub(r'path = "\1"', text)
    return _FOLDER_PATH.sub(r'path = "\1"', text)


def hosts_in(text: str) -> list[str]:
    """Every address still named in a lock; empty for a neutral one."""
    return _HOST.findall(text)


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    paths = [Path(argument) for argument in arguments if argument != "--check"]
    path = paths[0] if paths else Path("uv.lock")
    text = path.read_text("utf-8")
    if check:
        found = hosts_in(text)
        for host in found[:5]:
            print(f"{path}: names an address: {host}", file=sys.stderr)
        return 1 if found else 0
    neutral = neutralise(text)
    if neutral != text:
        path.write_text(neutral, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

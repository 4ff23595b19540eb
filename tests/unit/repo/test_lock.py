"""The committed lock names no index: whoever builds resolves from wherever they do."""

from __future__ import annotations

from pathlib import Path

from tools.lock import hosts_in, neutralise

ROOT = Path(__file__).parents[3]
WRITTEN_BY_UV = """version = 1

[manifest]
members = [
    "cortex-core",
]

[[package]]
name = "six"
version = "1.16.0"
source = { registry = "https://index.example/simple" }
sdist = { url = "https://files.example/a/b/six-1.16.0.tar.gz", hash = "sha256:1e61", size = 3 }
wheels = [
    { url = "https://files.example/c/six-1.16.0-py2.py3-none-any.whl", hash = "sha256:8abb", \
size = 9, upload-time = "2026-07-01T17:11:55.501Z" },
]

[[package]]
name = "cortex-core"
source = { editable = "packages/cortex-core" }
"""


def test_the_committed_lock_names_no_host():
    assert hosts_in((ROOT / "uv.lock").read_text("utf-8")) == []


def test_neutralising_keeps_names_versions_and_hashes_and_drops_addresses():
    neutral = neutralise(WRITTEN_BY_UV)
    assert hosts_in(neutral) == []
    assert 'source = { registry = "index" }' in neutral
    assert '{ path = "six-1.16.0.tar.gz", hash = "sha256:1e61" }' in neutral
    assert '{ path = "six-1.16.0-py2.py3-none-any.whl", hash = "sha256:8abb" },' in neutral
    assert "[manifest]" not in neutral
    assert 'name = "cortex-core"\nsource = { editable = "packages/cortex-core" }' in neutral
    assert neutralise(neutral) == neutral


def test_the_committed_lock_is_as_this_leaves_it():
    text = (ROOT / "uv.lock").read_text("utf-8")
    assert neutralise(text) == text


def test_an_address_is_found():
    assert hosts_in(WRITTEN_BY_UV)

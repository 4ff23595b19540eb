"""What is kept comes back; what cannot be read harms nobody."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cortex_core.config.loader import ConfigError
from cortex_core.fleet.ledger import LedgerRow
from cortex_gateway import statefile
from cortex_gateway.statefile import Kept, StateFile

KEPT = Kept((LedgerRow("m", "a", "cpu", "{}", 1000, 0.5),), ("m",), ("b",))


def test_what_is_written_is_read_by_the_next_process(tmp_path: Path) -> None:
    assert StateFile(tmp_path / "deep" / "folder").write(KEPT)
    assert StateFile(tmp_path / "deep" / "folder").read() == KEPT


def test_a_new_file_holds_nothing(tmp_path: Path) -> None:
    assert StateFile(tmp_path).read() == Kept()


def test_what_is_written_replaces_what_was(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.write(KEPT)
    file.write(Kept(pins=("other",)))
    assert file.read() == Kept(pins=("other",))


@pytest.mark.parametrize("damage", ["garbage", "schema", "table", "value"])
def test_a_file_that_cannot_be_read_is_set_aside_and_begun_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = StateFile(tmp_path)
    file.write(KEPT)
    if damage == "garbage":
        file.path.write_bytes(b"garbage" * 1000)
    else:
        with sqlite3.connect(file.path) as database:
            database.executescript(
                {
                    "schema": "PRAGMA user_version = 99",
                    "table": "DROP TABLE pins",
                    "value": "DROP TABLE ledger; CREATE TABLE ledger "
                    "(model, node, device, options, memory_bytes, load_s);"
                    "INSERT INTO ledger VALUES (1, 2, 3, 4, 'many', 6)",
                }[damage]
            )
        database.close()
    assert file.read() == Kept()
    assert file.path.with_suffix(".unreadable").exists()
    assert "set aside" in caplog.text
    assert file.write(KEPT)
    assert file.read() == KEPT


def test_a_file_that_somebody_holds_is_waited_for_and_then_refused_but_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statefile, "LOCKED_S", 0.05)
    file = StateFile(tmp_path)
    file.write(KEPT)
    holder = sqlite3.connect(file.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match=r"gateway\.state_dir: cannot read .* is locked"):
        file.read()
    assert not file.write(Kept())
    holder.close()
    assert file.read() == KEPT
    assert [path.name for path in tmp_path.iterdir()] == [statefile.FILE]


def test_a_file_that_cannot_be_opened_is_refused_but_left_alone(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*: unable to open"):
        file.read()
    assert file.path.is_dir()


def test_a_file_that_cannot_be_written_is_complained_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = StateFile(tmp_path)
    file.write(KEPT)
    file.path.write_bytes(b"garbage" * 1000)
    assert not file.write(KEPT)
    assert "the state is not kept" in caplog.text


def test_a_folder_that_cannot_be_is_refused_by_the_keys_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"gateway\.state_dir"):
        StateFile(tmp_path / "file" / "folder")

"""What a gateway keeps beyond its process: what loads were measured to take, pins and drains.

One small SQLite file, read at the start and rewritten whole when something has changed. It is
never worth more than the service: a file that cannot be read is set aside, and one that cannot be
written is complained about.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from cortex_core.config.loader import ConfigError
from cortex_core.fleet.ledger import LedgerRow

__all__ = ["Kept", "StateFile"]

FILE = "cortex.db"
SCHEMA = 1
_TABLES = """
CREATE TABLE ledger (
    model TEXT, node TEXT, device TEXT, options TEXT, memory_bytes INTEGER, load_s REAL,
    PRIMARY KEY (model, node, device, options)
) STRICT;
CREATE TABLE pins (model TEXT PRIMARY KEY) STRICT;
CREATE TABLE drains (node TEXT PRIMARY KEY) STRICT;
"""

_log = logging.getLogger("cortex.state")


class Kept(msgspec.Struct, frozen=True):
    """The content. `pins`: models that an operator wants kept; `drains`: nodes that are to get
    nothing new."""

    ledger: tuple[LedgerRow, ...] = ()
    pins: tuple[str, ...] = ()
    drains: tuple[str, ...] = ()


class StateFile:
    """Every method blocks on the disk: not for the event loop."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where no file can be kept in `folder`, which is made if need be."""
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ConfigError(
                "gateway.state_dir", None, f"cannot keep {self.path}: {why}"
            ) from None

    def read(self) -> Kept:
        """What was written last; nothing when that cannot be read, and then the file is renamed."""
        try:
            return self._read()
        except (sqlite3.Error, msgspec.ValidationError) as error:
            aside = self.path.with_suffix(".unreadable")
            self.path.replace(aside)
            _log.warning('"the state file is set aside" file=%s cause="%s"', aside, error)
            return Kept()

    def _read(self) -> Kept:
        with closing(sqlite3.connect(self.path)) as database:
            (schema,) = database.execute("PRAGMA user_version").fetchone()
            if schema == 0 and not database.execute("SELECT * FROM sqlite_schema").fetchall():
                return Kept()  # a file that has only just been made
            if schema != SCHEMA:
                raise sqlite3.DatabaseError(f"its schema is {schema}, not {SCHEMA}")
            columns = LedgerRow.__struct_fields__
            rows = database.execute(f"SELECT {', '.join(columns)} FROM ledger").fetchall()
            return Kept(
                tuple(_row(columns, row) for row in rows),
                tuple(model for (model,) in database.execute("SELECT model FROM pins")),
                tuple(node for (node,) in database.execute("SELECT node FROM drains")),
            )

    def write(self, kept: Kept) -> bool:
        """Replace everything, or nothing and complain. Whether it is written."""
        try:
            with closing(sqlite3.connect(self.path)) as database, database:
                self._write(database, kept)
        except sqlite3.Error as error:
            _log.warning('"the state is not kept" file=%s cause="%s"', self.path, error)
            return False
        return True

    def _write(self, database: sqlite3.Connection, kept: Kept) -> None:
        (schema,) = database.execute("PRAGMA user_version").fetchone()
        if schema == 0:
            database.executescript(_TABLES)
            database.execute(f"PRAGMA user_version = {SCHEMA}")
        for table in ("ledger", "pins", "drains"):
            database.execute(f"DELETE FROM {table}")
        database.executemany(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)",
            map(msgspec.structs.astuple, kept.ledger),
        )
        database.executemany("INSERT INTO pins VALUES (?)", [(model,) for model in kept.pins])
        database.executemany("INSERT INTO drains VALUES (?)", [(node,) for node in kept.drains])


def _row(columns: tuple[str, ...], values: tuple[Any, ...]) -> LedgerRow:
    return msgspec.convert(dict(zip(columns, values, strict=True)), LedgerRow)

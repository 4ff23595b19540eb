"""What a gateway keeps beyond its process: what loads were measured to take, pins and drains.

One small SQLite file, read at the start and rewritten whole when something has changed. A file that
is broken is set aside, and one that cannot be written is complained about: it is not worth more
than the service. One that is sound but out of reach stays as it is, and the start is refused: what
would be served without it would soon be written over it.
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

# How long somebody else (a backup, say) may hold the file; nothing of it takes long.
LOCKED_S = 5.0

SCHEMA = 1
_TABLES = """
CREATE TABLE ledger (
    model TEXT, node TEXT, device TEXT, options TEXT, memory_bytes INTEGER, load_s REAL,
    PRIMARY KEY (model, node, device, options)
) STRICT;
CREATE TABLE pins (model TEXT PRIMARY KEY) STRICT;
CREATE TABLE drains (node TEXT PRIMARY KEY) STRICT;
"""

_BROKEN = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,  # a table or column that is not there
    }
)
"""What SQLite says of files that no retry would mend."""

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
        """What was written last; nothing where the file is broken, and then it is renamed. Raises
        ConfigError where it cannot be opened, or is locked for LOCKED_S."""
        try:
            return self._read()
        except (sqlite3.Error, msgspec.ValidationError) as error:
            if not _is_broken(error):
                problem = f"cannot read {self.path}: {error}"
                raise ConfigError("gateway.state_dir", None, problem) from None
            aside = self.path.with_suffix(".unreadable")
            self.path.replace(aside)
            _log.warning('"the state file is set aside" file=%s cause="%s"', aside, error)
            return Kept()

    def _read(self) -> Kept:
        with closing(self._connect()) as database:
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
            with closing(self._connect()) as database, database:
                self._write(database, kept)
        except sqlite3.Error as error:
            _log.warning('"the state is not kept" file=%s cause="%s"', self.path, error)
            return False
        return True

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=LOCKED_S)

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


def _is_broken(error: Exception) -> bool:
    """Rather than out of reach. An error without a code is not SQLite's but about what it gave."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF in _BROKEN  # extended codes have the plain one in their last byte


def _row(columns: tuple[str, ...], values: tuple[Any, ...]) -> LedgerRow:
    return msgspec.convert(dict(zip(columns, values, strict=True)), LedgerRow)

"""Responses that a later request may go on from: one bounded SQLite table, in a file or in memory.

A response is kept with the whole conversation before it, so it does not depend on older ones that
may be gone. Writing happens on a thread of the store's own, and costs the same however many are
kept; what is being written can be read already.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from cortex_core.config.loader import ConfigError
from cortex_core.translate.responses_input import Item

__all__ = ["ResponseStore", "Stored"]

FILE = "responses.db"
SCHEMA = 1
_TABLES = f"""
CREATE TABLE responses (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    kept_at REAL NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE INDEX responses_by_age ON responses (kept_at, number, size);
CREATE TABLE items (
    id TEXT NOT NULL, response INTEGER NOT NULL REFERENCES responses ON DELETE CASCADE,
    PRIMARY KEY (id, response)
) STRICT, WITHOUT ROWID;
CREATE INDEX items_by_response ON items (response);
PRAGMA user_version = {SCHEMA};
"""

_log = logging.getLogger("cortex.responses")
_encode = msgspec.json.Encoder().encode


class Stored(msgspec.Struct, frozen=True):
    """A response object, and the items of the conversation that it answered, oldest first."""

    response: dict[str, Any]
    conversation: list[Item]

    @property
    def items(self) -> list[Item]:
        return self.conversation + self.response["output"]


_decoder = msgspec.json.Decoder(Stored)


class ResponseStore:
    """Oldest first, those leave that are older than `ttl_s`, and those beyond `most_bytes` in all
    (compressed). Close it when done."""

    def __init__(
        self,
        folder: Path | None,
        *,
        ttl_s: float,
        most_bytes: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`folder` None = in memory. Raises ConfigError where no file can be kept."""
        self._ttl_s = ttl_s
        self._most_bytes = most_bytes
        self._now = now
        self._fresh: dict[str, Stored] = {}  # being written
        self._writer = ThreadPoolExecutor(1, "responses")
        self._database = _open(folder)
        # A file is read through a connection of its own: one that is writing makes readers wait.
        self._reader = self._database if folder is None else _connect(folder / FILE)
        # Translations read on threads of theirs; to all who ask in the same words, Python gives the
        # same prepared statement.
        self._reading = threading.Lock()
        (self._bytes,) = self._database.execute(
            "SELECT coalesce(sum(size), 0) FROM responses"
        ).fetchone()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._close)
        self._writer.shutdown()

    def keep(self, response: dict[str, Any], conversation: list[Item]) -> None:
        """It can be read from here on; a failure to write it is complained about."""
        name = response["id"]
        stored = self._fresh[name] = Stored(response, conversation)
        writing = asyncio.get_running_loop().run_in_executor(
            self._writer, self._write, name, stored
        )
        writing.add_done_callback(lambda _: self._fresh.pop(name, None))

    def find(self, name: str) -> Stored | None:
        """A look into an index: tens of microseconds, and the unpacking."""
        if fresh := self._fresh.get(name):
            return fresh
        return self._read("id = :name", name)

    async def forget(self, name: str) -> bool:
        """Whether it was there."""
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._writer, self._delete, name)

    # what a translation asks

    def items(self, response: str) -> list[Item] | None:
        stored = self.find(response)
        return None if stored is None else stored.items

    def item(self, name: str) -> Item | None:
        for stored in list(self._fresh.values()):  # a long translation has a thread of its own
            if found := _named(name, stored):
                return found
        # Its first response is the one with the shortest conversation.
        stored = self._read(
            "number = (SELECT response FROM items JOIN responses ON number = response "
            "WHERE items.id = :name AND kept_at > :too_old ORDER BY response LIMIT 1)",
            name,
        )
        return None if stored is None else _named(name, stored)

    def _read(self, which: str, name: str) -> Stored | None:
        with self._reading:
            row = self._reader.execute(
                f"SELECT body FROM responses WHERE {which} AND kept_at > :too_old",
                {"name": name, "too_old": self._now() - self._ttl_s},
            ).fetchone()
        return None if row is None else _decoder.decode(zlib.decompress(row[0]))

    # on the store's thread

    def _write(self, name: str, stored: Stored) -> None:
        body = zlib.compress(_encode(stored), 1)
        items = {item["id"] for item in stored.items if isinstance(item.get("id"), str)}
        try:
            with self._database as database:
                number = database.execute(
                    "INSERT INTO responses (id, kept_at, size, body) VALUES (?, ?, ?, ?)",
                    (name, self._now(), len(body), body),
                ).lastrowid
                database.executemany(
                    "INSERT INTO items VALUES (?, ?)", [(item, number) for item in items]
                )
                left = self._make_room(database, self._bytes + len(body))
            self._bytes = left
        except sqlite3.Error as error:
            _log.warning('"a response is not kept" id=%s cause="%s"', name, error)

    def _make_room(self, database: sqlite3.Connection, size: int) -> int:
        """Delete what is too old or too much, the oldest first. `size`: of all; returns what is
        left of it."""
        too_old = self._now() - self._ttl_s
        gone: list[tuple[int]] = []
        for number, kept_at, its_size in database.execute(
            "SELECT number, kept_at, size FROM responses ORDER BY kept_at, number"
        ):
            if kept_at > too_old and size <= self._most_bytes:
                break
            gone.append((number,))
            size -= its_size
        database.executemany("DELETE FROM responses WHERE number = ?", gone)
        return size

    def _close(self) -> None:
        self._reader.close()
        self._database.close()

    def _delete(self, name: str) -> bool:
        with self._database as database:
            gone = database.execute("DELETE FROM responses WHERE id = ? RETURNING size", (name,))
            sizes = [size for (size,) in gone]
        self._bytes -= sum(sizes)
        return bool(sizes)


def _named(name: str, stored: Stored) -> Item | None:
    return next((item for item in stored.items if item.get("id") == name), None)


def _open(folder: Path | None) -> sqlite3.Connection:
    """A connection that threads may share. A file that is no database of ours is set aside."""
    path = None if folder is None else folder / FILE
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _prepared(_connect(path))
        except sqlite3.DatabaseError as error:
            if path is None or isinstance(error, sqlite3.OperationalError):
                raise
            aside = path.with_suffix(".unreadable")
            path.replace(aside)
            path.with_name(FILE + "-wal").unlink(
                missing_ok=True
            )  # it would be taken for the new one's
            _log.warning('"the responses are set aside" file=%s cause="%s"', aside, error)
            return _prepared(_connect(path))
    except (OSError, sqlite3.Error) as error:
        problem = f"cannot keep {path}: {error}"
        raise ConfigError("gateway.state_dir", None, problem) from None


def _connect(path: Path | None) -> sqlite3.Connection:
    return sqlite3.connect(path or ":memory:", check_same_thread=False)


def _prepared(database: sqlite3.Connection) -> sqlite3.Connection:
    """With our tables. Raises sqlite3.DatabaseError."""
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA foreign_keys = ON")
        (schema,) = database.execute("PRAGMA user_version").fetchone()
        if schema == 0 and not database.execute("SELECT * FROM sqlite_schema").fetchall():
            database.executescript(_TABLES)
        elif schema != SCHEMA:
            raise sqlite3.DatabaseError(f"its schema is {schema}, not {SCHEMA}")
    except BaseException:
        database.close()
        raise
    return database

"""Responses that a later request may go on from: one bounded SQLite table, in a file or in memory.

A response is kept with the whole conversation before it, so it does not depend on older ones that
may be gone. Writing happens on a thread of the store's own; what is being written can be read
already.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
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
_TABLES = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, kept_at REAL NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS responses_by_age ON responses (kept_at);
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, response TEXT NOT NULL REFERENCES responses ON DELETE CASCADE
) STRICT;
CREATE INDEX IF NOT EXISTS items_by_response ON items (response);
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

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._database.close)
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
        row = self._database.execute(
            "SELECT body FROM responses WHERE id = ? AND kept_at > ?",
            (name, self._now() - self._ttl_s),
        ).fetchone()
        return None if row is None else _decoder.decode(zlib.decompress(row[0]))

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
        row = self._database.execute("SELECT response FROM items WHERE id = ?", (name,)).fetchone()
        stored = None if row is None else self.find(row[0])
        return None if stored is None else _named(name, stored)

    # on the store's thread

    def _write(self, name: str, stored: Stored) -> None:
        body = zlib.compress(_encode(stored), 1)
        items = [(item["id"], name) for item in stored.items if isinstance(item.get("id"), str)]
        try:
            with self._database as database:
                database.execute(
                    "INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?)",
                    (name, self._now(), len(body), body),
                )
                database.executemany("INSERT OR REPLACE INTO items VALUES (?, ?)", items)
                self._make_room(database)
        except sqlite3.Error as error:
            _log.warning('"a response is not kept" id=%s cause="%s"', name, error)

    def _make_room(self, database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM responses WHERE kept_at <= ?", (self._now() - self._ttl_s,))
        database.execute(
            "DELETE FROM responses WHERE id IN (SELECT id FROM (SELECT id, sum(size) OVER "
            "(ORDER BY kept_at DESC, rowid DESC) AS newer FROM responses) WHERE newer > ?)",
            (self._most_bytes,),
        )

    def _delete(self, name: str) -> bool:
        with self._database as database:
            return database.execute("DELETE FROM responses WHERE id = ?", (name,)).rowcount > 0


def _named(name: str, stored: Stored) -> Item | None:
    return next((item for item in stored.items if item.get("id") == name), None)


def _open(folder: Path | None) -> sqlite3.Connection:
    """One connection for both threads, which SQLite serialises. A file that is no database of ours
    is set aside."""
    path = None if folder is None else folder / FILE
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if path is None or isinstance(error, sqlite3.OperationalError):
                raise
            aside = path.with_suffix(".unreadable")
            path.replace(aside)
            _log.warning('"the responses are set aside" file=%s cause="%s"', aside, error)
            return _connect(path)
    except (OSError, sqlite3.Error) as error:
        problem = f"cannot keep {path}: {error}"
        raise ConfigError("gateway.state_dir", None, problem) from None


def _connect(path: Path | None) -> sqlite3.Connection:
    database = sqlite3.connect(path or ":memory:", check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA foreign_keys = ON")
        database.executescript(_TABLES)
    except BaseException:
        database.close()
        raise
    return database

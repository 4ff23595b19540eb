"""Sequences parked in host memory, of all models of a worker. Any thread may use it.

Entries of different models never meet: each belongs to a `space`, which names the model's files as
they were read and the KV type, so that what was parked on unload fits when the same are loaded
again.
"""

from __future__ import annotations

import struct
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from cortex_core.wire.ipc import EngineParams
from neuron.models.identity import Identity
from neuron.worker.prefix_tree import PrefixTree

__all__ = ["HostCache", "Parked", "space_of"]

Int32s = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]

_HEADER = struct.Struct("<I")


def space_of(files: Identity, params: EngineParams) -> str:
    """The name under which a model's sequences are parked: what it was loaded from, with this KV
    type (flash attention lays the values out differently)."""
    return f"{files} {params.kv_type} {params.flash_attention}"


class Parked:
    """One sequence's tokens and what llama.cpp holds for them. A pinned one is the only copy of a
    request in progress: it is outside the budget and stays until it is dropped."""

    __slots__ = ("data", "is_pinned", "space", "tokens", "used")

    def __init__(self, space: str, tokens: Int32s, data: Bytes, is_pinned: bool) -> None:
        self.space = space
        self.tokens = tokens
        self.data = data
        self.is_pinned = is_pinned
        self.used = 0


class _Saved(msgspec.Struct, frozen=True, array_like=True):
    space: str
    tokens: bytes


class HostCache:
    """Least recently used entries make room beyond `budget_bytes`."""

    def __init__(self, budget_bytes: int = 2**62) -> None:
        self.budget_bytes = budget_bytes
        self.bytes = 0
        self._entries: set[Parked] = set()
        self._trees: dict[str, PrefixTree[Parked]] = {}
        self._lock = threading.Lock()
        self._clock = 0

    def limit(self, budget_bytes: int) -> None:
        """Change the budget; what is beyond the new one goes."""
        with self._lock:
            self.budget_bytes = budget_bytes
            self._make_room()

    def put(
        self, space: str, tokens: Int32s, data: Bytes, *, is_pinned: bool = False
    ) -> Parked | None:
        """Keep an entry; None where it is larger than the whole budget."""
        if not is_pinned and len(data) > self.budget_bytes:
            return None
        with self._lock:
            entry = Parked(space, tokens, data, is_pinned)
            self._touch(entry)
            self._entries.add(entry)
            self._trees.setdefault(space, PrefixTree()).put(entry, tokens)
            if not is_pinned:
                self.bytes += len(data)
                self._make_room()
            return entry

    def find(self, space: str, tokens: Int32s, *, whole: bool) -> tuple[int, Parked] | None:
        """The entry with the longest common prefix and its length. `whole`: only an entry all of
        which is a prefix of `tokens`."""
        with self._lock:
            tree = self._trees.get(space)
            if tree is None:
                return None
            for entry, length in reversed(tree.shared(tokens).items()):
                if not whole or length == len(entry.tokens):
                    self._touch(entry)
                    return length, entry
            return None

    def shared(self, space: str, tokens: Int32s, *, whole: bool) -> int:
        """How many of the first `tokens` an entry has; `whole`: all or none, and no more."""
        with self._lock:
            tree = self._trees.get(space)
            shared = tree.shared(tokens) if tree is not None else {}
            if whole:
                size = len(tokens)
                return size if any(size == n == len(e.tokens) for e, n in shared.items()) else 0
            return max(shared.values(), default=0)

    def drop_prefixes(self, space: str, tokens: Int32s) -> None:
        """Entries that are a mere beginning of `tokens` go: something longer takes their place."""
        with self._lock:
            tree = self._trees.get(space)
            for entry, length in tree.shared(tokens).items() if tree is not None else ():
                if length == len(entry.tokens) < len(tokens) and not entry.is_pinned:
                    self._drop(entry)

    def drop(self, entry: Parked) -> None:
        with self._lock:
            self._drop(entry)

    def all_bytes(self) -> int:
        """Held for all spaces, pinned ones included."""
        with self._lock:
            return sum(len(entry.data) for entry in self._entries)

    def size(self, space: str) -> int:
        """Bytes held for one space, pinned ones included."""
        with self._lock:
            return sum(len(entry.data) for entry in self._entries if entry.space == space)

    def save(self, folder: Path) -> int:
        """Write every entry to a file of its own, the most recently used last; how many. What
        cannot be written is left out: it is only a cache."""
        with self._lock:
            entries = sorted(self._entries, key=lambda entry: entry.used)
        saved = 0
        for number, entry in enumerate(entries):
            header = msgspec.msgpack.encode(_Saved(entry.space, entry.tokens.tobytes()))
            try:
                with open(folder / f"{number:06}.sequence", "wb") as file:
                    file.write(_HEADER.pack(len(header)))
                    file.write(header)
                    file.write(entry.data.data)
            except OSError as error:
                sys.stderr.write(f"a parked sequence was not saved: {error}\n")
                break
            saved += 1
        return saved

    def restore(self, folder: Path) -> int:
        """Take back what `save` wrote, and remove the files; how many came back."""
        restored = 0
        for path in sorted(folder.glob("*.sequence")):
            try:
                raw = path.read_bytes()
                (size,) = _HEADER.unpack_from(raw)
                header = msgspec.msgpack.decode(raw[4 : 4 + size], type=_Saved)
                tokens = np.frombuffer(header.tokens, np.int32)
                data = np.frombuffer(raw, np.uint8, offset=4 + size)
            except (OSError, ValueError, struct.error, msgspec.DecodeError) as error:
                sys.stderr.write(f"{path.name}: not restored: {error}\n")
                continue
            finally:
                path.unlink(missing_ok=True)
            restored += self.put(header.space, tokens, data) is not None
        return restored

    def _touch(self, entry: Parked) -> None:
        self._clock += 1
        entry.used = self._clock

    def _make_room(self) -> None:
        while self.bytes > self.budget_bytes:
            loose = (entry for entry in self._entries if not entry.is_pinned)
            self._drop(min(loose, key=lambda entry: entry.used))

    def _drop(self, entry: Parked) -> None:
        if entry not in self._entries:
            return
        self._entries.remove(entry)
        self._trees[entry.space].drop(entry)
        if not entry.is_pinned:
            self.bytes -= len(entry.data)

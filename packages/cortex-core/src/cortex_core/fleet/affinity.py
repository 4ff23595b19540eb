"""Which replica has computed the beginning of a prompt before. Pure; knows of no request's end.

A prompt's beginning is known by the hashes of its first blocks, each over all that comes before it
too. What is remembered is where requests were sent; whether that node's cache still holds the
prefix, only the node knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cortex_core.fleet.topology import Replica

__all__ = ["BLOCK_BYTES", "MOST_KEYS", "Affinity", "prefix_keys"]

BLOCK_BYTES = 512
MOST_KEYS = 256


def prefix_keys(parts: Iterable[bytes]) -> tuple[int, ...]:
    """One key for each whole block of `BLOCK_BYTES` of the parts put together, at most
    `MOST_KEYS`; equal keys at one index mean equal bytes up to there. Keys hold within this
    process only.
    """
    text = b"".join(parts)
    key = 0
    keys: list[int] = []
    last = min(len(text) - len(text) % BLOCK_BYTES, MOST_KEYS * BLOCK_BYTES)
    for start in range(0, last, BLOCK_BYTES):
        # Keyed by the process's secret, so nobody can make up a prompt that collides.
        key = hash((key, text[start : start + BLOCK_BYTES]))
        keys.append(key)
    return tuple(keys)


class Affinity:
    """`most_keys` are remembered for each model; those longest unused are forgotten first."""

    def __init__(self, most_keys: int = 32_768) -> None:
        self._most_keys = most_keys

    def choose(
        self,
        replicas: Sequence[Replica],
        keys: Sequence[int],
        in_flight: Mapping[str, int],
        capacity: Mapping[str, int],
    ) -> Replica:
        """Where a request with this prefix goes, out of one model's `replicas` (at least one).

        in_flight: node → requests for the model there now. capacity: node → how many it answers at
        once; 1 where unknown.

        The replica that knows most of the prefix, if that is a good part of it; but not while it is
        full and another is clearly less so. Otherwise the least loaded; of equals the one that has
        seen least, then the first by name.
        """
        raise NotImplementedError

    def served(self, replica: Replica, keys: Sequence[int]) -> None:
        """A request with this prefix was sent there."""
        raise NotImplementedError

    def depth(self, replica: Replica, keys: Sequence[int]) -> int:
        """How many of the keys, from the first on, the replica has been sent before."""
        raise NotImplementedError

    def forget(self, node: str, model: str | None = None) -> None:
        """What the node had computed is gone: all of it, or one model's."""
        raise NotImplementedError

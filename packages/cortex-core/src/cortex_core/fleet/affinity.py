"""Which replica has computed the beginning of a prompt before. Pure; knows of no request's end.

A prompt's beginning is known by the hashes of its first blocks, each over all that comes before it
too. What is remembered is where requests were sent; whether that node's cache still holds the
prefix, only the node knows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from cortex_core.fleet.topology import Replica

__all__ = ["BLOCK_BYTES", "MOST_KEYS", "Affinity", "prefix_keys"]

BLOCK_BYTES = 512
MOST_KEYS = 256

_GOOD_PART = 0.3  # of a prompt; to compute the rest elsewhere would cost less than the wait saves


def prefix_keys(parts: Iterable[bytes]) -> tuple[int, ...]:
    """One key for each whole block of `BLOCK_BYTES` of the parts put together, at most
    `MOST_KEYS`; equal keys at one index mean equal bytes up to there. Keys hold within this
    process only.
    """
    text = b"".join(parts)
    end = min(len(text) - len(text) % BLOCK_BYTES, MOST_KEYS * BLOCK_BYTES)
    key = 0
    keys: list[int] = []
    for start in range(0, end, BLOCK_BYTES):
        # Python's own hash is keyed by a secret of the process: nobody can write a prompt whose
        # keys are another's.
        key = hash((key, text[start : start + BLOCK_BYTES]))
        keys.append(key)
    return tuple(keys)


class Affinity:
    """`most_keys` are remembered for each model; those longest unused are forgotten first."""

    def __init__(self, most_keys: int = 32_768) -> None:
        self._most_keys = most_keys
        self._models: dict[str, _Prefixes] = {}

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
        full and another is half as loaded at most. Otherwise the least loaded; of equals the one
        that knows more of it, then the one whose last new conversation is longest ago, then the
        first by name.
        """
        if len(replicas) == 1:
            return replicas[0]
        loads = {
            replica: in_flight.get(replica.node, 0) / (capacity.get(replica.node) or 1)
            for replica in replicas
        }
        prefixes = self._models.get(replicas[0].model)
        if prefixes is None or not keys:
            return min(replicas, key=lambda r: (loads[r], r.node, r.device))
        known = {replica: prefixes.depth(replica.node, keys) for replica in replicas}
        known = {r: depth if _is_good(depth, keys) else 0 for r, depth in known.items()}

        def by_load(replica: Replica) -> tuple[float, int, int, str, str]:
            turn = prefixes.turns.get(replica.node, 0)
            return (loads[replica], -known[replica], turn, replica.node, replica.device)

        least = min(replicas, key=by_load)
        deepest = max(known.values())
        if not deepest:
            return least
        favourite = min((r for r in replicas if known[r] == deepest), key=by_load)
        is_overloaded = loads[favourite] >= 1 and 2 * loads[least] <= loads[favourite]
        return least if is_overloaded else favourite

    def served(self, replica: Replica, keys: Sequence[int]) -> None:
        """A request with this prefix was sent there."""
        if not keys:
            return
        prefixes = self._models.get(replica.model)
        if prefixes is None:
            prefixes = self._models[replica.model] = _Prefixes()
        prefixes.served(replica.node, keys, self._most_keys)

    def depth(self, replica: Replica, keys: Sequence[int]) -> int:
        """How many of the keys, from the first on, the replica has been sent before."""
        prefixes = self._models.get(replica.model)
        return prefixes.depth(replica.node, keys) if prefixes else 0

    def forget(self, node: str, model: str | None = None) -> None:
        """What the node had computed is gone: all of it, or one model's."""
        for name in list(self._models) if model is None else [model]:
            prefixes = self._models.get(name)
            if prefixes is not None and not prefixes.forget(node):
                del self._models[name]

    def __len__(self) -> int:
        """Keys remembered, over all models."""
        return sum(len(prefixes.nodes) for prefixes in self._models.values())


class _Prefixes:
    """One model's. `nodes`: key → the nodes that were sent it, a bit for each; the key used last
    comes last. `turns`: node → when it last got a new conversation, in conversations.

    Of one prompt's keys the first is always used last, and so forgotten last: a node that knows a
    key knows all that come before it.
    """

    def __init__(self) -> None:
        self.nodes: OrderedDict[int, int] = OrderedDict()
        self.turns: dict[str, int] = {}
        self._bits: dict[str, int] = {}
        self._turn = 0

    def served(self, node: str, keys: Sequence[int], most: int) -> None:
        if not _is_good(self.depth(node, keys), keys):
            self._turn += 1
            self.turns[node] = self._turn
        bit = self._bits.get(node)
        if bit is None:
            bit = self._bits[node] = 1 << len(self._bits)
        nodes = self.nodes
        for key in reversed(keys):
            nodes[key] = nodes.get(key, 0) | bit
            nodes.move_to_end(key)
        while len(nodes) > most:
            nodes.popitem(last=False)

    def depth(self, node: str, keys: Sequence[int]) -> int:
        bit = self._bits.get(node, 0)
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if self.nodes.get(keys[middle], 0) & bit:
                low = middle + 1
            else:
                high = middle
        return low

    def forget(self, node: str) -> bool:
        """Whether anything is left."""
        bit = self._bits.get(node, 0)
        self.turns.pop(node, None)
        for key in [key for key, nodes in self.nodes.items() if nodes & bit]:
            self.nodes[key] &= ~bit
            if not self.nodes[key]:
                del self.nodes[key]
        return bool(self.nodes)


def _is_good(depth: int, keys: Sequence[int]) -> bool:
    return depth >= _GOOD_PART * len(keys)

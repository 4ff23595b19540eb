"""A radix tree over token sequences: who shares how long a prefix with these tokens. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["PrefixTree", "common_prefix"]

Int32s = npt.NDArray[np.int32]
K = TypeVar("K", bound=Hashable)

_NOTHING: Int32s = np.empty(0, np.int32)


def common_prefix(left: Int32s, right: Int32s) -> int:
    """Length of the longest common prefix."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


class _Node(Generic[K]):
    """`edge` leads here from the parent. `keys`: whose sequence covers the whole edge. Sequences
    end only at nodes, and a node has all its children's keys."""

    __slots__ = ("children", "edge", "keys", "parent")

    def __init__(self, edge: Int32s, parent: _Node[K] | None, keys: set[K]) -> None:
        self.edge = edge
        self.parent = parent
        self.keys = keys
        self.children: dict[int, _Node[K]] = {}


class PrefixTree(Generic[K]):
    """One token sequence per key; equal prefixes are stored once."""

    def __init__(self) -> None:
        self._root: _Node[K] = _Node(_NOTHING, None, set())
        self._ends: dict[K, _Node[K]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._ends

    def __len__(self) -> int:
        return len(self._ends)

    def put(self, key: K, tokens: Int32s) -> None:
        """`key` has these tokens, whatever it had before."""
        self.drop(key)
        self._ends[key] = self._root
        self.extend(key, tokens)

    def extend(self, key: K, tokens: Int32s) -> None:
        """`key` has these tokens after those it has."""
        node = self._ends[key]
        at = 0
        while at < len(tokens):
            child = node.children.get(int(tokens[at]))
            if child is None:
                node = self._grow(node, key, np.array(tokens[at:], np.int32))
                break
            shared = common_prefix(child.edge, tokens[at:])
            if shared < len(child.edge):
                child = self._split(child, shared)
            child.keys.add(key)
            node = child
            at += shared
        self._ends[key] = node

    def cut(self, key: K, length: int) -> None:
        """`key` has only its first `length` tokens."""
        tokens = self.tokens(key)
        if length < len(tokens):
            self.put(key, tokens[:length])

    def drop(self, key: K) -> None:
        """`key` has nothing any more; it need not have had."""
        node = self._ends.pop(key, self._root)
        while node.parent is not None:
            parent = node.parent
            node.keys.discard(key)
            if not node.keys:
                del parent.children[int(node.edge[0])]
            else:
                self._merge(node)
            node = parent

    def tokens(self, key: K) -> Int32s:
        """All tokens of `key` (a copy)."""
        edges: list[Int32s] = []
        node: _Node[K] | None = self._ends[key]
        while node is not None:
            edges.append(node.edge)
            node = node.parent
        return np.concatenate(edges[::-1])

    def shared(self, tokens: Int32s) -> dict[K, int]:
        """How many of the first `tokens` each key has, of the keys that have any. Those with the
        longest prefix come last."""
        found: dict[K, int] = {}
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children.get(int(tokens[at]))
            if child is None:
                break
            length = common_prefix(child.edge, tokens[at:])
            at += length
            for key in child.keys:
                found.pop(key, None)
                found[key] = at
            if length < len(child.edge):
                break
            node = child
        return found

    def _grow(self, node: _Node[K], key: K, edge: Int32s) -> _Node[K]:
        if node.keys == {key} and not node.children and node.parent is not None:
            node.edge = np.concatenate((node.edge, edge))
            return node
        child = node.children[int(edge[0])] = _Node(edge, node, {key})
        return child

    def _split(self, node: _Node[K], at: int) -> _Node[K]:
        """Put a node between `node` and its parent, `at` tokens along the edge."""
        parent = node.parent
        assert parent is not None
        upper: _Node[K] = _Node(node.edge[:at], parent, set(node.keys))
        parent.children[int(node.edge[0])] = upper
        node.edge, node.parent = node.edge[at:], upper
        upper.children[int(node.edge[0])] = node
        return upper

    def _merge(self, node: _Node[K]) -> None:
        """Undo a split that nobody needs any more: one child, with the same keys."""
        if len(node.children) != 1:
            return
        (child,) = node.children.values()
        if child.keys != node.keys:
            return
        node.edge = np.concatenate((node.edge, child.edge))
        node.children = child.children
        for grandchild in node.children.values():
            grandchild.parent = node
        for key in child.keys:
            if self._ends[key] is child:
                self._ends[key] = node

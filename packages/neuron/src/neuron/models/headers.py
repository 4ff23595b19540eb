"""The headers of files that were read lately. A large vocabulary takes 40 ms to walk over, which a
model that comes and goes would cost at every load and every estimate.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from neuron.models.gguf import GgufHeader, read_header
from neuron.models.identity import Identity, identity_of

__all__ = ["Headers"]

_MOST = 16


class Headers:
    """Any thread may ask."""

    def __init__(self) -> None:
        self._read: OrderedDict[Path, tuple[Identity, GgufHeader]] = OrderedDict()

    def of(self, path: Path) -> GgufHeader:
        """As `read_header`, and not read again while its files are the same. Raises
        PreflightFailed."""
        identity = _identity(path)
        known = self._read.pop(path, None)
        if known is None or identity is None or known[0] != identity:
            known = identity or (), read_header(path)
        if identity is not None:
            self._read[path] = known
            while len(self._read) > _MOST:
                self._read.popitem(last=False)
        return known[1]


def _identity(path: Path) -> Identity | None:
    """None where a file cannot be looked at; who reads it then says why."""
    try:
        return identity_of(path)
    except OSError:
        return None

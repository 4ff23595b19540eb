"""What tells a model's files from any others, so that what was made of them is never taken for
another model's."""

from __future__ import annotations

from pathlib import Path

from cortex_core.errors import PreflightFailed
from neuron.models.gguf import parts_of

__all__ = ["Identity", "check_unchanged", "identity_of"]

Identity = tuple[tuple[int, int, int, int], ...]
"""Of each part: device, inode, bytes and when it was last written (ns)."""


def identity_of(path: Path) -> Identity:
    """Of all parts of a model, as they are now. Raises OSError, and PreflightFailed for a part's
    name that cannot be."""
    facts = [part.stat() for part in parts_of(path)]
    return tuple((each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in facts)


def check_unchanged(path: Path, files: Identity) -> None:
    """What was read since `files` was taken is of these files, and of no mixture. Raises
    PreflightFailed."""
    try:
        now = identity_of(path)
    except OSError:
        now = None
    if now != files:
        message = f"{path}: its files changed while they were being read"
        raise PreflightFailed(message, kind="gguf_unreadable")

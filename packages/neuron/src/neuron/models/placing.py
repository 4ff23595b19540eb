"""Which devices of this node may take a model when the asker names none. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cortex_core.errors import NoCapacity

__all__ = ["Candidate", "by_room"]


class Candidate(msgspec.Struct, frozen=True):
    """A device as a place for a model. `free_bytes`: what the driver says less what models being
    loaded will take; None when unknown. `failure`: why it cannot take any."""

    device: str
    is_cpu: bool
    free_bytes: int | None
    models: int
    failure: str | None = None


def by_room(candidates: Iterable[Candidate], file_bytes: int) -> list[str]:
    """The working devices, best first: one where the file fits before one where it does not, a GPU
    before a CPU, then most free memory, then fewest models, then the first listed.

    CPU devices share the host's memory, so it tells nothing between them.
    Raises NoCapacity with every device's cause.
    """

    def order(candidate: Candidate) -> tuple[bool, bool, int, int]:
        free = candidate.free_bytes
        is_tight = free is not None and free < file_bytes
        room = 0 if candidate.is_cpu else (free or 0)
        return (is_tight, candidate.is_cpu, -room, candidate.models)

    candidates = list(candidates)
    working = [candidate for candidate in candidates if candidate.failure is None]
    if not working:
        causes = "; ".join(f"{c.device}: {c.failure}" for c in candidates)
        raise NoCapacity(f"every device of this node has failed ({causes})")
    return [candidate.device for candidate in sorted(working, key=order)]

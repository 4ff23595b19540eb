"""A scheduler without a model: what is computed, as traces."""

from __future__ import annotations

from neuron.worker.scheduler import Scheduler, Sequence

__all__ = ["admit", "names", "run", "wait_for"]


def run(scheduler: Scheduler[Sequence]) -> str:
    """Compute the next batch; say which: `d0,1` rows of slots 0 and 1, `p2:0-5` a chunk,
    `p2:0-5 p3:0-5` two in one pass."""
    batch = scheduler.next()
    if batch is None:
        return "-"
    trace = "d" + ",".join(str(sequence.slot) for sequence in batch.decode)
    if batch.chunks:
        trace = " ".join(f"p{c.sequence.slot}:{c.start}-{c.stop}" for c in batch.chunks)
    scheduler.computed(batch)
    return trace


def admit(scheduler: Scheduler[Sequence], slot: int, prompt: int, cached: int = 0) -> Sequence:
    sequence = Sequence(prompt_size=prompt)
    scheduler.enqueue(sequence)
    scheduler.start(sequence, slot, cached)
    return sequence


def names(scheduler: Scheduler[Sequence]) -> list[str]:
    """Who would start, in order, if everybody could."""
    order = []
    for sequence in scheduler.candidates():
        order.append(sequence.caller)
        scheduler.start(sequence, len(order), 0)
    return order


def wait_for(scheduler: Scheduler[Sequence], *callers: str, rank: int = 0) -> None:
    for caller in callers:
        scheduler.enqueue(Sequence(prompt_size=4, caller=caller, rank=rank))

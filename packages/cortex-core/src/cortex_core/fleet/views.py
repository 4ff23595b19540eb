"""The board as placement sees it: one view of each node, made for one model. Acts on nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cortex_core.fleet.board import Board, Node
from cortex_core.fleet.discovery import NodeState
from cortex_core.fleet.lifecycle import Place
from cortex_core.fleet.placement import (
    DeviceView,
    NodeView,
    NoPlacement,
    Placement,
    Resident,
    Want,
    place,
)

if TYPE_CHECKING:
    from cortex_core.fleet.plans import Plan

__all__ = ["decide", "why_not"]


def decide(
    board: Board,
    model: str,
    *,
    only: Iterable[str] | None = None,
    may_evict: bool = True,
    within: Plan | None = None,
) -> Placement | NoPlacement:
    """Where `model` is to be loaded now. `only`: the nodes that are considered. `within`: the plan
    that asks; it is not in its own way."""
    names = list(board.nodes if only is None else only)
    avoid = {name: why for name in names if (why := why_not(board, board.nodes[name], model))}
    want = Want(
        entry=board.catalogue.entry(model),
        waiting=board.waiting.count(model),
        may_evict=may_evict,
        avoid=avoid,
    )
    views = [_view(board, board.nodes[name], model, within) for name in names]
    return place(want, views, board.policy.eviction, board.now)


def why_not(board: Board, node: Node, model: str) -> str:
    """Why a node that may well have room is left out."""
    known = node.places.get(model)
    if known is not None and known.has_memory:
        return f"the model is {known.state} there"
    if known is not None and known.retry_at is not None and known.cools_down(board.now):
        wait_s = known.retry_at - board.now
        cause = known.fault.message if known.fault else "unknown cause"
        return f"failed with it, and is not tried again for {wait_s:.0f} s: {cause}"
    if board.now < node.rests_until:
        return "somebody else is changing what it holds"
    return ""


def _view(board: Board, node: Node, model: str, within: Plan | None) -> NodeView:
    state = board.topology.state(node.name)
    if state is None or not board.topology.is_reachable(node.name):
        return NodeView(name=node.name, absence=board.topology.cause(node.name) or "not seen yet")
    ids = [device.id for device in state.devices]
    places = [known for known in node.places.values() if known.has_memory]
    # A load that somebody else has begun takes memory that nobody knows yet.
    is_filling = any(known.state == "loading" and known.order is None for known in places)
    is_taken = node.plan is not None and node.plan is not within
    return NodeView(
        name=node.name,
        devices=_devices(state),
        residents=tuple(_resident(board, known) for known in places if known.said is not None),
        needs=board.ledger.needs(model, node.name, ids),
        fault=board.ledger.fault(model, node.name),
        is_draining=board.is_draining(node.name),
        is_placing=is_taken or is_filling,
    )


def _devices(state: NodeState) -> tuple[DeviceView, ...]:
    taken = dict.fromkeys((device.id for device in state.devices), 0)
    for model in state.models:
        taken[model.device] = taken.get(model.device, 0) + model.memory_bytes
    views = []
    for device in state.devices:
        total, free = device.memory_total_bytes, device.memory_free_bytes
        # A CPU device that only pretends to have memory has exactly what its models leave;
        # otherwise it shares the host's.
        is_own = total is not None and free == total - taken[device.id]
        worker = device.worker
        cause = f"its worker has failed: {worker.cause}" if worker.phase == "failed" else ""
        views.append(
            DeviceView(
                id=device.id,
                kind=device.kind,
                total_bytes=total,
                free_bytes=free,
                cause=cause,
                pool="host" if device.kind == "cpu" and not is_own else "",
            )
        )
    return tuple(views)


def _resident(board: Board, known: Place) -> Resident:
    assert known.said is not None
    said, model, node = known.said, known.model, known.node
    need = board.ledger.need(model, node, said.device)
    phase = known.state
    assert phase != "absent"
    return Resident(
        model=model,
        device=said.device,
        memory_bytes=said.memory_bytes or (need.memory_bytes if need else 0),
        # One that we let finish is ready to go, once nobody uses it.
        phase="ready" if phase == "draining" and said.phase == "ready" else phase,
        is_pinned=board.is_pinned(model, node),
        priority=board.catalogue.entry(model).residency_priority,
        busy=known.users,
        loaded_at=known.loaded_at,
        last_used=known.used_at,
        reload_s=board.ledger.reload_s(model, node),
        demand=board.ledger.demand(model, board.now),
    )

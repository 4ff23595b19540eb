"""Why a request cannot be served now, as the error its client gets. Acts on nothing."""

from __future__ import annotations

import math

from cortex_core.errors import (
    CortexError,
    ModelLoading,
    ModelNotFound,
    NoCapacity,
    NodeUnavailable,
    RateLimitExceeded,
)
from cortex_core.fleet.board import Board
from cortex_core.fleet.placement import NoPlacement
from cortex_core.fleet.waiting import Ticket

__all__ = ["load_failed", "no_such_node", "nowhere", "overdue", "put_aside", "too_many", "unknown"]

_MOST_NAMED = 20


def unknown(board: Board, name: str) -> CortexError:
    """Nobody has ever heard of the model. A node that has not spoken since the gateway began may
    have it: then who asks should ask again, as after any node that is away."""
    if lost := _out_of_reach(board):
        return lost
    known = sorted({*board.catalogue.ids, *board.places})
    near = board.catalogue.near(name, held=board.places)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    listed = ", ".join(known[:_MOST_NAMED]) + (", …" if len(known) > _MOST_NAMED else "")
    listed = f"known models: {listed or 'none'}"
    unheard = [node for node in board.topology.names if board.topology.state(node) is None]
    if unheard:
        nodes = ", ".join(f"{node} ({board.topology.cause(node)})" for node in unheard)
        return NodeUnavailable(
            f"no node heard of so far has the model {name!r}{hint}; {listed}; "
            f"not heard of yet: {nodes}"
        )
    return ModelNotFound(f"no node has the model {name!r}{hint}; {listed}", param="model")


def nowhere(board: Board, model: str, decision: NoPlacement) -> CortexError:
    """It is ready nowhere, and can be loaded nowhere."""
    if failed := _failure(board, model):
        return failed
    places = board.places.get(model, {})
    away = [node for node in places if not board.topology.is_reachable(node)]
    held = [node for node in away if places[node].has_memory]
    if held:
        nodes = ", ".join(f"{node} ({board.topology.cause(node)})" for node in held)
        return NodeUnavailable(
            f"the model {model!r} is only on unreachable nodes: {nodes}" + _elsewhere(decision)
        )
    if lost := _out_of_reach(board):
        return lost
    faults = [board.ledger.fault(model, node) for node in board.nodes]
    if all(fault is not None and fault.code == "model_not_found" for fault in faults):
        return unknown(board, model)
    causes = "; ".join(f"{node}: {why}" for node, why in sorted(decision.causes.items()))
    wait_s = None if decision.retry_at is None else _whole(decision.retry_at - board.now)
    return NoCapacity(f"the model {model!r} cannot be loaded: {causes}", retry_after_s=wait_s)


def no_such_node(board: Board, node: str) -> CortexError:
    """An operator named it, and it is no longer configured."""
    known = ", ".join(board.nodes) or "none"
    return NodeUnavailable(f"no node is called {node!r}; configured: {known}")


def load_failed(board: Board, model: str) -> CortexError:
    """It was tried, in vain."""
    return _failure(board, model) or NoCapacity(f"the model {model!r} could not be loaded")


def put_aside(board: Board, model: str) -> CortexError:
    """Every replica has failed several requests in a row, and then its probe."""
    places = board.tripped.get(model, ())
    until = [place.breaker.until for place in places if place.breaker.until is not None]
    nodes = ", ".join(place.node for place in places)
    return NoCapacity(
        f"the model {model!r} is put aside for now, because it failed one request after another on "
        f"{nodes}",
        retry_after_s=_whole(min(until, default=board.now) - board.now),
    )


def too_many(board: Board, model: str) -> CortexError:
    count = board.waiting.count(model)
    return RateLimitExceeded(
        f"{count} requests wait for the model {model!r} already",
        retry_after_s=_patience(board, model),
    )


def overdue(board: Board, ticket: Ticket) -> CortexError:
    """It has waited for as long as anybody may."""
    model = ticket.model
    patience_s = _patience(board, model)
    if board.is_coming(model, ticket.node):
        return ModelLoading(
            f"the model {model!r} is still being loaded after {board.policy.max_wait_s:g} s",
            retry_after_s=patience_s,
        )
    return NoCapacity(
        f"there was no room for the model {model!r} within {board.policy.max_wait_s:g} s",
        retry_after_s=patience_s,
    )


def _out_of_reach(board: Board) -> CortexError | None:
    """Where no node at all can be reached."""
    names = board.topology.names
    if any(board.topology.is_reachable(node) for node in names):
        return None
    causes = "; ".join(f"{node}: {board.topology.cause(node)}" for node in names)
    return NodeUnavailable(f"no neuron is reachable ({causes or 'none is configured'})")


def _failure(board: Board, model: str) -> CortexError | None:
    """What its places that are left alone after a failure have to say."""
    failed = [
        place
        for place in board.places.get(model, {}).values()
        if place.cools_down(board.now) and board.topology.is_reachable(place.node)
    ]
    if not failed:
        return None
    causes = "; ".join(
        f"on {place.node}: {place.fault.message if place.fault else 'unknown cause'}"
        for place in failed
    )
    until = min(place.retry_at or board.now for place in failed)
    return NoCapacity(
        f"the model {model!r} could not be loaded: {causes}",
        retry_after_s=_whole(until - board.now),
    )


def _elsewhere(decision: NoPlacement) -> str:
    causes = "; ".join(f"{node}: {why}" for node, why in sorted(decision.causes.items()))
    return f" (elsewhere it cannot be loaded: {causes})" if causes else ""


def _patience(board: Board, model: str) -> int:
    """Seconds after which asking again makes sense: those of a load, on the quickest node."""
    return _whole(min((board.ledger.reload_s(model, node) for node in board.nodes), default=1.0))


def _whole(wait_s: float) -> int:
    return max(1, math.ceil(wait_s))

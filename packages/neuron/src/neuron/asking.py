"""A request whose answer comes whole: one question to a worker, one result back."""

from __future__ import annotations

import msgspec

from cortex_core.errors import UpstreamFailed
from cortex_core.outcome import Usage
from cortex_core.wire import ipc
from neuron.generation import ModelRegistry

__all__ = ["Reply", "ask"]


class Reply(msgspec.Struct, frozen=True):
    result: ipc.Result
    usage: Usage


async def ask(registry: ModelRegistry, question: ipc.Ask) -> Reply:
    """Waits as long as the worker takes; cancelling withdraws the question. `question.request` is
    0. Raises what `ModelRegistry.open` raises, and the CortexError the request ended with."""
    result: ipc.Result | None = None
    async with registry.open(question) as stream:
        while True:
            for event in await stream.read():
                if isinstance(event, ipc.Computed):
                    result = event.result
                elif isinstance(event, ipc.Finished):
                    if result is None:
                        raise UpstreamFailed("the worker ended the request without an answer")
                    return Reply(result, event.usage)

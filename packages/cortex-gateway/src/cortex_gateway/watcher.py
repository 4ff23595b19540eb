"""Follows one neuron's `/events`, for as long as the gateway lives.

Feeds the fleet: a state for every `state` event, a loss with its cause for everything else. There
is no polling, and no second opinion: a node counts exactly while this stream is alive.
"""

from __future__ import annotations

import asyncio
import logging
import random

import aiohttp
import msgspec

from cortex_core.fleet.discovery import NodeState
from cortex_core.wire import sse
from cortex_gateway.fleet import Fleet
from cortex_gateway.upstream import NETWORK_ERRORS, Neuron, cause_of

__all__ = ["SILENCE_S", "Watcher"]

# A neuron beats every 2 s. Three missed beats also end connections that nobody closed: black-holed
# and half-open ones look exactly like silence.
SILENCE_S = 6.0

BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 5.0

# A state is a few kilobytes; what is longer without an event in it is not a neuron talking.
MAX_EVENT_BYTES = 16 * 1024 * 1024

_log = logging.getLogger("cortex.fleet")
_decoder = msgspec.json.Decoder(NodeState)


class Watcher:
    """`run` never returns; its owner cancels it."""

    def __init__(self, neuron: Neuron, fleet: Fleet) -> None:
        self._neuron = neuron
        self._fleet = fleet
        self._was_heard = False

    async def run(self) -> None:
        backoff_s = BACKOFF_MIN_S
        while True:
            cause = await self._follow()
            self._fleet.lost(self._neuron.name, cause)
            if self._was_heard:
                backoff_s = BACKOFF_MIN_S
            # Jitter, so that several gateways do not knock on a restarted neuron in step.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _follow(self) -> str:
        """Follow one connection to its end; returns why it ended. Raises nothing: with its watcher
        dead, a node would only look silent."""
        self._was_heard = False
        try:
            return await self._listen()
        except NETWORK_ERRORS as error:
            return cause_of(error)
        except Exception as error:
            _log.exception('"following a node failed" node=%s', self._neuron.name)
            return cause_of(error)

    async def _listen(self) -> str:
        response = await self._neuron.ask(
            "GET", "/events", headers={"Accept": "text/event-stream"}, silence_s=SILENCE_S
        )
        try:
            if response.status != 200:
                return f"HTTP {response.status} on /events"
            return await self._read(response.content)
        except aiohttp.ClientPayloadError:
            return "its event stream broke off"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return f"it sent a state that cannot be read: {error}"
        finally:
            response.close()

    async def _read(self, content: aiohttp.StreamReader) -> str:
        parser = sse.Parser()
        unparsed = 0
        while chunk := await content.readany():
            events = parser.feed(chunk)
            unparsed = 0 if events or chunk.endswith(b"\n\n") else unparsed + len(chunk)
            if unparsed > MAX_EVENT_BYTES:
                return "it sent an event without end"
            for event in events:
                if event.event == "state":
                    self._fleet.observed(self._neuron.name, _decoder.decode(event.data))
                    self._was_heard = True
        return "its event stream ended"

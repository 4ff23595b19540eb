"""Planned restarts of a device's worker, each an operation to ask about; one at a time per device.

How it goes is the supervisor's affair: what runs may finish, what is cached is handed over to the
new process, the models are loaded again, and it does not count as a crash.
"""

from __future__ import annotations

from collections.abc import Callable

from cortex_core.errors import Conflict, NotFound
from neuron.models.inventory import Inventory
from neuron.models.operations import OperationRecord, Operations

__all__ = ["Restarting"]


class Restarting:
    """`changed(urgent)` is told when one has ended."""

    def __init__(
        self, inventory: Inventory, operations: Operations, changed: Callable[[bool], None]
    ) -> None:
        self._inventory = inventory
        self._operations = operations
        self._changed = changed
        self._newest: dict[str, OperationRecord] = {}  # per device

    def restart(self, device: str, drain_s: float) -> OperationRecord:
        """Begin a restart, or join the one in progress. Requests that run may go on for `drain_s`.

        Raises NotFound (device), Conflict for a worker that is not up, and ShuttingDown.
        """
        self._inventory.refuse_when_stopping()
        supervisor = self._inventory.supervisors.get(device)
        if supervisor is None:
            known = ", ".join(self._inventory.supervisors)
            raise NotFound(f"there is no device {device[:100]!r} here; devices: {known}")
        before = self._newest.get(device)
        if before is not None and before.is_running:
            return before
        worker = supervisor.worker
        if worker.phase != "ready":
            why = f": {worker.cause}" if worker.cause else ""
            raise Conflict(f"the worker of {device} is {worker.phase}{why}")
        record = self._newest[device] = self._operations.begin("restart", device=device)
        self._operations.carry_out(record, supervisor.restart(drain_s), self._changed)
        return record

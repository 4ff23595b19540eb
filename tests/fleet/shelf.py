"""What a scripted neuron could load, and how its loads and unloads go: at once, slowly, badly.

Answers the routes for orders as a neuron does, conflicts included, and keeps its state and its
free memory true.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from cortex_core.errors import (
    Conflict,
    CortexError,
    Fault,
    ModelNotFound,
    NotFound,
    PreflightFailed,
    render_openai,
)
from cortex_core.fleet.discovery import ModelState, Operation

if TYPE_CHECKING:
    from tests.fleet.scripted_neuron import Call, ScriptedNeuron

__all__ = ["ROOM_BYTES", "Shelf"]

ROOM_BYTES = 10_000


class Shelf:
    """`sizes`: bytes of each model that could be loaded. `gate`: loads and unloads finish
    while it is set.
    `faults`: model → what its loads fail with; `unreadable`: model → why it is not even tried.
    `said`: every order that was taken or refused, as (verb, model)."""

    def __init__(self, neuron: ScriptedNeuron, sizes: dict[str, int]) -> None:
        self._neuron = neuron
        self._first_sizes = sizes
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        self.sizes: dict[str, int] = {}
        self.gate = asyncio.Event()
        self.faults: dict[str, Fault] = {}
        self.unreadable: dict[str, Fault] = {}
        self.busy: Counter[str] = Counter()
        self.operations: dict[str, Operation] = {}
        self.said: list[tuple[str, str]] = []
        self.reset()

    def reset(self) -> None:
        self.sizes = dict(self._first_sizes)
        self.gate.set()
        self.faults = {}
        self.unreadable = {}
        self.operations = {}
        self.said = []

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def free_bytes(self) -> int:
        return ROOM_BYTES - sum(model.memory_bytes for model in self._neuron.state.models)

    async def answer(self, call: Call) -> bool:
        """Answer an order; False when it is none."""
        try:
            value = await self._value(call)
        except CortexError as error:
            await call.answer(msgspec.json.encode(render_openai(error)), error.status)
            return True
        if value is None:
            return False
        status = 202 if isinstance(value, Operation) and value.phase == "running" else 200
        await call.answer(msgspec.json.encode(value), status)
        return True

    async def _value(self, call: Call) -> Any:
        neuron = self._neuron
        match call.method, call.path.split("/")[1:]:
            case "GET", ["discovery"]:
                return neuron.state
            case "GET", ["operations", identity]:
                if identity not in self.operations:
                    raise NotFound(f"no operation {identity!r}")
                return self.operations[identity]
            case "POST", ["models", "estimate"]:
                return self._estimate(call.json["model"], call.json.get("device", "cpu"))
            case "POST", ["models", "load"]:
                return await self._load(call.json)
            case "POST", ["models", "unload"]:
                return await self._unload(call.json)
            case "POST", ["devices", device, "restart"]:
                self.said.append(("restart", device))
                return self._operation("restart", "", "done")
            case "POST", ["drain" | "undrain" as verb]:
                self.said.append((verb, ""))
                await neuron.show(draining=verb == "drain")
                return {}
        return None

    def _estimate(self, model: str, device: str) -> dict[str, Any]:
        size = self._size(model)
        return {"model": model, "total_bytes": size, "devices": [], "device": device}

    def _size(self, model: str) -> int:
        if model in self.unreadable:
            raise CortexError.from_fault(self.unreadable[model])
        held = {state.id: state.memory_bytes for state in self._neuron.state.models}
        sizes = held | self.sizes
        if model not in sizes:
            raise ModelNotFound(f"{self._neuron.name} has no {model!r}", param="model")
        return sizes[model]

    async def _load(self, order: dict[str, Any]) -> Operation:
        neuron, model = self._neuron, order["model"]
        self.said.append(("load", model))
        self._check_holdings(order)
        size = self._size(model)
        if size > self.free_bytes:
            raise PreflightFailed(
                f"{model!r} takes {size} B, of {self.free_bytes} B", kind="insufficient_memory"
            )
        state = ModelState(
            model,
            order.get("device") or "cpu",
            "loading",
            f"/models/{model}",
            memory_bytes=size,
            context=order.get("context") or 2048,
            parallel=4,
        )
        await self._hold([*neuron.state.models, state])
        operation = self._operation("load", model, "running")
        self._begin(self._loaded(operation, state))
        return operation

    async def _loaded(self, operation: Operation, state: ModelState) -> None:
        await self.gate.wait()
        if operation.id not in self.operations:
            return  # it has been taken back
        others = [model for model in self._neuron.state.models if model.id != state.id]
        fault = self.faults.get(state.id)
        if fault is not None:
            await self._hold(others)
            self._end(operation, fault=fault)
        else:
            ready = msgspec.structs.replace(state, phase="ready", load_s=0.5)
            await self._hold([*others, ready])
            self._end(operation, result=ready)

    async def _unload(self, order: dict[str, Any]) -> Operation:
        neuron, model = self._neuron, order["model"]
        self.said.append(("unload", model))
        self._check_holdings(order)
        if order.get("if_idle") and self.busy[model]:
            raise Conflict(f"{model!r} is in use: {self.busy[model]} running", param="if_idle")
        if order.get("force"):
            for operation in list(self.operations.values()):
                if operation.model == model:
                    del self.operations[operation.id]
        if model not in {state.id for state in neuron.state.models}:
            raise ModelNotFound(f"{neuron.name} does not hold {model!r}", param="model")
        if not self.gate.is_set() and not order.get("force"):
            return self._operation("unload", model, "running")
        await self._hold([state for state in neuron.state.models if state.id != model])
        return self._operation("unload", model, "done")

    def _check_holdings(self, order: dict[str, Any]) -> None:
        wanted, has = order.get("if_holdings"), self._neuron.state.holdings
        if wanted is not None and wanted != has:
            raise Conflict(f"holdings are {has}, not {wanted}", param="if_holdings")

    async def _hold(self, models: list[ModelState]) -> None:
        neuron = self._neuron
        await neuron.show(models=models, holdings=neuron.state.holdings + 1)

    def _operation(self, kind: Any, model: str, phase: Any) -> Operation:
        self._count += 1
        operation = Operation(f"{kind}-{self._count}", kind, model, phase)
        self.operations[operation.id] = operation
        return operation

    def _end(
        self,
        operation: Operation,
        *,
        result: ModelState | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.operations[operation.id] = msgspec.structs.replace(
            operation, phase="failed" if fault else "done", result=result, fault=fault
        )

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""A gateway and one neuron as children on this machine: what `up` and `demo` run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from importlib import metadata
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from cortex_cli.child import Child
from cortex_cli.failure import Failure
from cortex_cli.gateway import Gateway
from cortex_cli.steps import Step, Steps
from cortex_core.envelopes.admin import FleetNode, FleetView
from cortex_core.errors import CortexError

__all__ = ["EMBEDDED", "NODE", "Plan", "Stack"]

T = TypeVar("T")

NODE = "local"
"""What the neuron is called."""

EMBEDDED = "cortex/tiny"
"""The model that comes with the neuron."""

_START_S = 60.0
_POLL_S = 0.1
# Gateway and neuron each finish running answers before they go, up to their own drain_s (30 s).
_PATIENCE_S = 40.0


class Plan(msgspec.Struct, frozen=True):
    """What to start. Addresses are host:port; port 0 means any free one."""

    folder: Path  # for logs and the gateway's configuration
    models: list[str]
    listen: str = "127.0.0.1:0"
    metrics_listen: str = "127.0.0.1:0"
    local: list[str] = []  # folders whose GGUF files may be loaded later
    cpu_workers: int | None = None


class Stack:
    """An async context manager: leaving it, however, stops both children.

    Call `start`; wrap what follows, `models_ready` first, in `while_alive`.
    """

    def __init__(self, plan: Plan, steps: Steps) -> None:
        self.url = ""
        self.metrics_url = ""
        self._plan = plan
        self._steps = steps
        self._children: list[Child] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        # The gateway first: it stops taking requests and finishes those the neuron still serves.
        for child in reversed(self._children):
            await child.stop(_PATIENCE_S)
        self._children.clear()

    def kill(self) -> None:
        """Ends the patience of a stop that is under way."""
        for child in self._children:
            child.kill()

    async def start(self) -> None:
        """Both listen, and `url` is known. Raises Failure with the last lines of who failed."""
        _check_neuron_is_installed()
        self._plan.folder.mkdir(parents=True, exist_ok=True)
        async with self._steps.step("neuron") as step:
            neuron = await self._child("neuron", "neuron", *self._neuron())
            match = await neuron.said(r"^neuron \S+ listening on (http://\S+)", _START_S)
            step.result = endpoint = match[1]
        async with self._steps.step("gateway") as step:
            gateway = await self._child("gateway", "cortex_cli", self._gateway(endpoint), {})
            match = await gateway.said(r"^gateway listening on (http://\S+)", _START_S)
            step.result = self.url = _local_url(match[1])
            match = await gateway.said(r"^metrics listening on (http://\S+)", _START_S)
            self.metrics_url = _local_url(match[1]) + "/metrics"

    def _neuron(self) -> tuple[list[str], dict[str, str]]:
        plan = self._plan
        arguments = ["--listen", "127.0.0.1:0", "--name", NODE]
        for model in plan.models:
            arguments += ["--model", model]
        if plan.cpu_workers is not None:
            arguments += ["--cpu-workers", str(plan.cpu_workers)]
        environment = {"NEURON_MODELS__LOCAL": json.dumps(plan.local)} if plan.local else {}
        return arguments, environment

    def _gateway(self, endpoint: str) -> list[str]:
        config = self._plan.folder / "cortex.toml"
        config.write_text(f'[[neurons]]\nname = "{NODE}"\nendpoint = "{endpoint}"\n', "utf-8")
        plan = self._plan
        return [
            "serve", "--config", str(config),
            "--listen", plan.listen, "--metrics-listen", plan.metrics_listen,
        ]  # fmt: skip

    async def _child(
        self, name: str, module: str, arguments: list[str], environment: dict[str, str]
    ) -> Child:
        log = self._plan.folder / f"{name}.log"
        child = Child(name, module, arguments, environment, log)
        await child.start()
        self._children.append(child)
        return child

    async def models_ready(self, timeout_s: float) -> list[str]:
        """The ids of the models, all ready as the gateway sees it. Raises the fault of one that
        failed, or Failure at the timeout."""
        async with Gateway(self.url) as gateway, self._steps.step("models") as step:
            try:
                async with asyncio.timeout(timeout_s):
                    ids = await self._polled(gateway, step)
            except TimeoutError:
                raise Failure(f"the models were not ready within {timeout_s:.0f} s") from None
            step.result = ", ".join(ids)
            return ids

    async def _polled(self, gateway: Gateway, step: Step) -> list[str]:
        while True:
            node = _local(await gateway.fleet())
            found = node.state.models if node.state else []
            for model in found:
                if model.phase == "failed":
                    if model.fault is None:
                        raise Failure(f"{model.id} failed to load, without a cause")
                    raise CortexError.from_fault(model.fault)
            if len(found) >= len(self._plan.models) and all(m.phase == "ready" for m in found):
                return [model.id for model in found]
            done = sum(m.progress or 0.0 if m.phase == "loading" else 1.0 for m in found)
            step.progress = done / len(self._plan.models)
            await asyncio.sleep(_POLL_S)

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, unless a child ends first: then its Failure, and no more work."""
        task = asyncio.create_task(work)
        deaths = {asyncio.create_task(child.ended()): child for child in self._children}
        try:
            await asyncio.wait({task, *deaths}, return_when=asyncio.FIRST_COMPLETED)
            # Deaths first: work that a death made fail would only say so in other words.
            for death, child in deaths.items():
                if death.done():
                    raise child.death()
            return task.result()
        finally:
            for each in (task, *deaths):
                each.cancel()
            await asyncio.gather(task, *deaths, return_exceptions=True)


def _local_url(listening: str) -> str:
    """What to connect to: the address of "everywhere" is one only to listen on."""
    return listening.replace("://0.0.0.0:", "://127.0.0.1:").replace("://[::]:", "://[::1]:")


def _local(view: FleetView) -> FleetNode:
    return next(node for node in view.nodes if node.name == NODE)


def _check_neuron_is_installed() -> None:
    try:
        # By distribution: `import neuron` may find the neuroscience simulator of that name.
        metadata.version("helexa-neuron")
    except metadata.PackageNotFoundError:
        raise Failure(
            "the neuron is not installed beside this cortex; install it with "
            "`pip install ./packages/cortex-core ./packages/neuron`"
        ) from None

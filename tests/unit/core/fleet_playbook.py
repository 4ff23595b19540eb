"""A fleet of values to play to a conductor: nodes and what they say, and a stage that feeds it one
stimulus after the other and hands back the instructions, the wishes for a Tick left out."""

from __future__ import annotations

from collections.abc import Iterable

from cortex_core.config.gateway import EvictionSection
from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.conductor import Conductor, Policy
from cortex_core.fleet.discovery import (
    DeviceState,
    ModelPhase,
    ModelState,
    NodeState,
    WorkerState,
)
from cortex_core.fleet.events import (
    AnswerBegan,
    EstimateCame,
    Instruction,
    Interest,
    Load,
    NodeLost,
    NodeObserved,
    OrderEnded,
    Refuse,
    RequestCame,
    RequestEnded,
    RequestFailed,
    Send,
    Stimulus,
    Tick,
    WakeAt,
)
from cortex_core.fleet.topology import Replica

GB = 1_000_000_000
ILL = Fault("upstream_failed", "the connection broke")
CONFLICT = Fault("conflict", "somebody was quicker")
NOT_FOUND = Fault("model_not_found", "no such file", "model")
BROKEN = Fault("gguf_corrupt", "the file is damaged")


def model(
    name: str,
    phase: ModelPhase = "ready",
    gb: float = 4,
    *,
    device: str = "cuda:0",
    running: int = 0,
    parallel: int = 4,
    fault: Fault | None = None,
) -> ModelState:
    return ModelState(
        id=name,
        device=device,
        phase=phase,
        path=f"/{name}.gguf",
        memory_bytes=int(gb * GB) if phase not in ("loading", "failed") else 0,
        parallel=parallel,
        running=running,
        load_s=3.0,
        fault=fault,
    )


def sent(request: str, to: str, name: str = "m", load_s: float | None = None) -> Send:
    return Send(request, Replica(name, to, "cuda:0"), load_s)


def load(order: int, to: str, name: str = "m", holdings: int = 0) -> Load:
    return Load(order, name, to, "cuda:0", holdings)


def refusal(instructions: list[Instruction]) -> Fault:
    assert len(instructions) == 1
    assert isinstance(instructions[0], Refuse)
    return instructions[0].fault


class Stage:
    """`now` is moved by `at` and `later`. Every node has one GPU of `gb` GB."""

    def __init__(
        self,
        nodes: str = "a",
        models: Iterable[ModelEntry | str] = ("m",),
        *,
        aliases: dict[str, str] | None = None,
        gb: float = 10,
        max_waiting: int = 256,
        max_wait_s: float = 600,
        eviction: EvictionSection | None = None,
    ) -> None:
        entries = [ModelEntry(id=one) if isinstance(one, str) else one for one in models]
        self.catalogue = Catalogue(entries, aliases)
        self.policy = Policy(max_waiting, max_wait_s, eviction or EvictionSection())
        self.conductor = Conductor(self.catalogue, self.policy, nodes.split())
        self.now = 100.0
        self.gb = gb
        self.wakes: list[float] = []
        self._versions: dict[str, int] = {}

    def play(self, stimulus: Stimulus) -> list[Instruction]:
        out = self.conductor.handle(stimulus, self.now)
        self.wakes += [one.at for one in out if isinstance(one, WakeAt)]
        return [one for one in out if not isinstance(one, WakeAt)]

    def state(
        self,
        node: str,
        *models: ModelState,
        boot: str = "b1",
        holdings: int = 0,
        draining: bool = False,
    ) -> NodeState:
        version = self._versions[node] = self._versions.get(node, 0) + 1
        total = int(self.gb * GB)
        device = DeviceState(
            "cuda:0",
            "cuda",
            "a card",
            WorkerState("ready"),
            memory_total_bytes=total,
            memory_free_bytes=total - sum(one.memory_bytes for one in models),
        )
        return NodeState(node, boot, version, draining, [device], list(models), holdings)

    def observe(
        self,
        node: str,
        *models: ModelState,
        boot: str = "b1",
        holdings: int = 0,
        draining: bool = False,
    ) -> list[Instruction]:
        state = self.state(node, *models, boot=boot, holdings=holdings, draining=draining)
        return self.play(NodeObserved(node, state))

    def lose(self, node: str) -> list[Instruction]:
        return self.play(NodeLost(node, "silent for 6 s"))

    def ask(
        self, request: str, name: str = "m", caller: str = "", prefix: tuple[int, ...] = ()
    ) -> list[Instruction]:
        return self.play(RequestCame(Interest(request, name, caller, prefix)))

    def answering(self, request: str) -> list[Instruction]:
        return self.play(AnswerBegan(request))

    def end(
        self, request: str, *, has_answer: bool = True, fault: Fault | None = None
    ) -> list[Instruction]:
        return self.play(RequestEnded(request, has_answer, fault))

    def fail(self, request: str, fault: Fault = ILL) -> list[Instruction]:
        return self.play(RequestFailed(request, fault))

    def estimate(
        self, node: str, name: str = "m", gb: float = 4, fault: Fault | None = None
    ) -> list[Instruction]:
        needs = {} if fault else {"cuda:0": int(gb * GB)}
        return self.play(EstimateCame(name, node, needs, fault))

    def done(
        self, order: int, state: ModelState | None = None, fault: Fault | None = None
    ) -> list[Instruction]:
        return self.play(OrderEnded(order, fault, state, 3.0))

    def later(self, seconds: float) -> list[Instruction]:
        """So much time passes, and a Tick comes."""
        self.now += seconds
        return self.play(Tick())

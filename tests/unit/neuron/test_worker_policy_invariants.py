"""Whatever order things happen in: what was asked for is concluded, exactly once, and a worker is
never told what it cannot do."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cortex_core.errors import Fault
from cortex_core.wire import ipc
from neuron import worker_events as p
from neuron.worker_policy import Limits, WorkerPolicy

INFO = ipc.ModelInfo("test", 512, 512, 2, 100, 1000, 10, 20, 0.1)
NAMES = st.sampled_from("abc")


class Device(RuleBasedStateMachine):
    """A policy with the process it commands, both as values."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = WorkerPolicy("cpu", Limits(step_timeout_s=10, crashes_to_fail=6))
        self.now = 0.0
        self.process: str | None = None  # None, "starting", "up", "killed"
        self.restart_due = False
        self.answering: str | None = None  # the load in progress
        self.leaving: set[str] = set()  # unloads sent
        self.wanted_loads: set[str] = set()
        self.wanted_unloads: set[str] = set()
        self.is_restart_wanted = False
        self.is_told_to_end = False
        self.feed(p.Begun(0))

    def feed(self, event: p.Event) -> None:
        for instruction in self.policy.handle(event):
            match instruction:
                case p.Spawn():
                    assert self.process is None
                    self.process = "starting"
                case p.Kill():
                    assert self.process in ("starting", "up")
                    self.process = "killed"
                    self.answering = None
                    self.leaving.clear()
                case p.RestartAfter(delay_s):
                    assert self.process is None
                    assert 0 < delay_s <= 30
                    self.restart_due = True
                case p.SendShutdown():
                    assert self.process == "up"
                    assert self.answering is None
                    assert not self.leaving
                    self.is_told_to_end = True
                case p.ConcludeRestart():
                    assert self.is_restart_wanted
                    self.is_restart_wanted = False
                case p.SendLoad(spec):
                    assert self.process == "up"
                    assert not self.is_told_to_end
                    assert self.answering is None
                    self.answering = spec.model
                case p.SendUnload(model):
                    assert self.process == "up"
                    assert not self.is_told_to_end
                    assert model not in self.leaving
                    self.leaving.add(model)
                case p.ConcludeLoad(model):
                    self.wanted_loads.remove(model)
                case p.ConcludeUnload(model):
                    self.wanted_unloads.remove(model)

    def is_free(self, name: str) -> bool:
        """The registry runs the operations of one model one after the other."""
        return name not in self.wanted_loads | self.wanted_unloads

    @rule(name=NAMES)
    def want_load(self, name: str) -> None:
        held = self.policy.models.get(name)
        if self.is_free(name) and (held is None or held.phase == "failed"):
            self.wanted_loads.add(name)
            self.feed(p.LoadWanted(p.LoadSpec(name, "/m", ipc.EngineParams())))

    @rule(name=NAMES)
    def want_unload(self, name: str) -> None:
        if self.is_free(name):
            self.wanted_unloads.add(name)
            self.feed(p.UnloadWanted(name))

    @precondition(lambda self: self.process == "starting")
    @rule()
    def greet(self) -> None:
        self.process = "up"
        self.feed(p.Spawned(self.now, 1))
        self.feed(p.Greeted(self.now))

    @precondition(lambda self: self.answering is not None)
    @rule(is_good=st.booleans())
    def answer_load(self, is_good: bool) -> None:
        model, self.answering = self.answering, None
        assert model is not None
        fault = Fault("gguf_unsupported", "no")
        self.feed(p.Succeeded(model, INFO) if is_good else p.Refused(model, fault))

    @precondition(lambda self: self.leaving)
    @rule()
    def answer_unload(self) -> None:
        self.feed(p.Unloaded(self.leaving.pop()))

    @precondition(lambda self: self.process is not None)
    @rule()
    def exit(self) -> None:
        self.process = self.answering = None
        self.leaving.clear()
        self.is_told_to_end = False
        self.feed(p.Exited(self.now, "was killed by SIGKILL", "sigkill"))

    @precondition(lambda self: not self.is_restart_wanted)
    @rule()
    def want_restart(self) -> None:
        self.is_restart_wanted = True
        self.feed(p.RestartWanted())

    @precondition(lambda self: self.is_restart_wanted and self.policy.is_settled)
    @rule()
    def quiesce(self) -> None:
        self.feed(p.Quiesced(self.now))

    @precondition(lambda self: self.is_told_to_end and self.process == "up")
    @rule()
    def obey(self) -> None:
        self.process, self.is_told_to_end = None, False
        self.feed(p.Exited(self.now, "exited with code 0", "exit_0"))

    @precondition(lambda self: self.process == "up")
    @rule(step_s=st.sampled_from([0.0, 11.0]))
    def report(self, step_s: float) -> None:
        self.feed(p.Reported(self.now, ipc.Progress(1, [ipc.ModelLoad("a", 1, 1, 0, 0, step_s)])))

    @precondition(lambda self: self.restart_due)
    @rule()
    def restart(self) -> None:
        self.restart_due = False
        self.feed(p.RestartDue(self.now))

    @rule(seconds=st.sampled_from([0.5, 4.0, 20.0, 700.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.feed(p.Ticked(self.now))

    @invariant()
    def what_was_asked_for_is_on_its_way(self) -> None:
        for name in self.wanted_loads:
            assert self.policy.models[name].phase == "loading"
        for name in self.wanted_unloads:
            assert name in self.leaving or name == self.answering
        if self.policy.phase == "ready" and not self.is_restart_wanted:
            waits = [m for m in self.policy.models.values() if m.phase in ("loading", "recovering")]
            assert not waits or self.answering is not None

    @invariant()
    def phases_agree_with_the_process(self) -> None:
        if self.process != "up":
            assert all(m.phase not in ("ready", "unloading") for m in self.policy.models.values())
        if self.policy.phase == "failed":
            assert self.process is None
            assert not self.restart_due
            assert not self.wanted_loads | self.wanted_unloads
            assert not self.is_restart_wanted

    def teardown(self) -> None:
        self.feed(p.StopWanted())
        assert not self.wanted_loads | self.wanted_unloads
        assert not self.is_restart_wanted


TestDevice = Device.TestCase
TestDevice.settings = settings(max_examples=60, stateful_step_count=40)

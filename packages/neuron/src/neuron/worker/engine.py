"""The loop of one model: commands in, one Step per llama_decode out.

One thread runs it and alone touches the llama_context. A failed step never goes on with a context
in doubt: all requests of the model fail with the cause, the context is built anew, and if the
very next step fails too the process ends, loudly, for the supervisor to start it again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cortex_core.errors import (
    CortexError,
    Fault,
    InternalError,
    NoCapacity,
    UpstreamFailed,
)
from cortex_core.outcome import Usage
from cortex_core.wire.ipc import (
    Cancel,
    Delta,
    Failed,
    Finished,
    FinishReason,
    Generate,
    ModelLoad,
    Pause,
    Resume,
    Started,
    Step,
)
from neuron.worker import llama
from neuron.worker.host_cache import HostCache
from neuron.worker.intake import Intake, Prepared, takes_long
from neuron.worker.kv import KV
from neuron.worker.load import LoadedModel
from neuron.worker.memory import Memory
from neuron.worker.pool import Pool
from neuron.worker.rows import Rows
from neuron.worker.scheduler import Batch, Scheduler
from neuron.worker.seats import Seats
from neuron.worker.slots import Slots
from neuron.worker.stream import Stream
from neuron.worker.wait_policy import WaitPolicy

__all__ = ["Engine"]

_LOOK_AGAIN_S = 0.05
_THREADED_FROM = 2**19
"""Logits of a step from which on rows are sampled on several threads: four rows of a vocabulary of
150,000, about 0.6 ms of work against 0.1 ms to hand it out and collect it."""

_EXPIRE_EVERY_S = 0.25

_MOMENT_S = 0.002
_BURST_S = 0.01
_PREFILL_PER_MOMENT = 50
"""An idle engine that is asked for something waits this moment for more, and again after whatever
comes, for a burst's length at most; but for no more than a fiftieth of what it will take to compute
the prompts that are there."""

_REFUSED = {1: "no free cells for the batch", -1: "the batch is not valid"}
"""llama_decode's codes that leave the context as it was; only the batch's requests fail."""


class _BatchRefusedError(Exception):
    pass


class Engine:
    """`emit` takes every Step, `die` ends the process with a message and does not return."""

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        *,
        emit: Callable[[Step], None],
        die: Callable[[str], None],
        host: HostCache | None = None,
        space: str = "",
        wait_policy: WaitPolicy | None = None,
    ) -> None:
        """Sequences are parked in `host` under `space`, which names the model file."""
        self._name = name
        self._loaded = loaded
        self._host = HostCache(0) if host is None else host
        self._space = space
        self._vocabulary = loaded.model.vocabulary
        cores = min(len(os.sched_getaffinity(0)), 8)
        self._threads = ThreadPoolExecutor(cores, "sampling") if cores > 1 else None
        self._end_ids = np.array(sorted(self._vocabulary.end_ids), np.int32)
        self._emit = emit
        self._die = die
        self._wait_policy = wait_policy or WaitPolicy(None)

        self._inbox: deque[Generate | Cancel | Pause | Resume | Prepared] = deque()
        self._preparing: dict[int, float] = {}  # by request, until when
        self._arrival = threading.Condition()
        self._is_stopping = False
        self._stop_fault: Fault | None = None

        self._streams: dict[int, Stream] = {}
        self._context = loaded.context
        self._reset()
        self._intake = Intake(loaded, can_trim=self._kv.can_trim)
        self._started: list[Started] = []
        self._deltas: list[Delta] = []
        self._finished: list[Finished] = []
        self._failed: list[Failed] = []

        self._steps = 0
        self._generated = 0
        self._step_began = 0.0
        self._failures = 0

    # any thread

    def submit(self, command: Generate | Cancel | Pause | Resume) -> None:
        if isinstance(command, Generate) and takes_long(command):
            self._preparing[command.request] = time.monotonic() + self._loaded.params.max_wait_s
            self._intake.prepare(command, self._enqueue, self._preparing.__contains__)
            self._wake()
        else:
            self._enqueue(command)

    def _enqueue(self, command: Generate | Cancel | Pause | Resume | Prepared) -> None:
        self._inbox.append(command)
        self._wake()

    def _wake(self) -> None:
        with self._arrival:
            self._arrival.notify()

    def stop(self, fault: Fault) -> None:
        """End `run` after the step in progress; requests still there fail with `fault`."""
        self._stop_fault = fault
        self._is_stopping = True
        self._wake()

    @property
    def is_idle(self) -> bool:
        return not (self._inbox or self._streams or self._preparing)

    def state(self) -> ModelLoad:
        """The load now; `step_s` ages while a step hangs, the parking or restoring of a sequence,
        or the compiling of a constraint."""
        parts = self._step_began, self._context.began, self._intake.began
        began = min(filter(None, parts), default=0.0)
        scheduler, kv = self._scheduler, self._kv
        running = kv.cells_running
        paused = len(scheduler.paused)
        return ModelLoad(
            model=self._name,
            steps=self._steps,
            generated=self._generated,
            running=len(scheduler.decoding) + len(scheduler.prefilling) + paused,
            waiting=len(scheduler.waiting) + len(self._inbox) + len(self._preparing),
            step_s=time.monotonic() - began if began else 0.0,
            cells=kv.cells,
            cells_running=running,
            cells_cached=max(kv.cells_used - running, 0),
            host_bytes=self._host.size(self._space),
            paused=paused,
        )

    # the engine's thread

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._is_stopping:
            if self._inbox or self._scheduler.has_work or self._preparing:
                self._turn()
                continue
            self._wait_policy.rest()
            with self._arrival:
                while not (self._inbox or self._preparing or self._is_stopping):
                    self._arrival.wait()
            self._gather()
            self._flush()  # there may be nothing to compute, and who was cancelled hears it
        self._drain()
        if self._stop_fault is not None:
            self._fail_all(self._stop_fault)
            self._failed += [Failed(one, self._stop_fault) for one in self._preparing]
            self._preparing.clear()
        self._flush()

    def close(self) -> None:
        """Park what is cached, and free everything."""
        if self._threads is not None:
            self._threads.shutdown()
        self._intake.close()
        for left in self._inbox:
            if isinstance(left, Prepared) and left.stream is not None:
                left.stream.free()
        self._memory.park_all()
        self._context.free()
        self._loaded.held.close()

    def _gather(self) -> None:
        """The first of a burst's requests would be computed by itself, and while it then decodes
        the prompts of all others come in small chunks."""
        until = time.monotonic() + _BURST_S
        while True:
            self._drain()
            self._started += self._seats.admit()
            moment_s = min(_MOMENT_S, self._scheduler.prefill_s / _PREFILL_PER_MOMENT)
            wait_s = min(moment_s, until - time.monotonic())
            with self._arrival:
                if wait_s <= 0 or not (self._inbox or self._arrival.wait(wait_s)):
                    return

    def _turn(self) -> None:
        self._drain()
        self._expire()
        self._started += self._seats.admit()
        self._seats.make_room()
        self._flush()
        batch = self._scheduler.next()
        if batch is None:
            with self._arrival:  # all who wait do so for what only time or a command brings
                if not self._inbox:
                    self._arrival.wait(_LOOK_AGAIN_S)
            return
        self._step_began = time.monotonic()
        try:
            self._compute(batch)
            self._failures = 0
        except _BatchRefusedError as error:
            self._drop(batch, NoCapacity(str(error)).fault)
        except Exception as error:
            self._start_over(error)
        finally:
            self._step_began = 0.0
            self._steps += 1
        self._flush()
        self._wait_policy.stepped()

    def _flush(self) -> None:
        if not (self._deltas or self._started or self._finished or self._failed):
            return
        step = Step(self._name, self._started, self._deltas, self._finished, self._failed)
        self._started, self._deltas, self._finished, self._failed = [], [], [], []
        self._emit(step)

    def _drain(self) -> None:
        while self._inbox:
            match command := self._inbox.popleft():
                case Cancel():
                    self._cancel(command.request)
                case Pause():
                    if stream := self._streams.get(command.request):
                        self._scheduler.pause(stream)
                case Resume():
                    if stream := self._streams.get(command.request):
                        self._scheduler.resume(stream)
                case Prepared():
                    self._accept_prepared(command)
                case Generate():
                    self._take_in(command)

    def _take_in(self, command: Generate) -> None:
        try:
            self._accept(self._intake.stream(command))
        except CortexError as error:
            self._failed.append(Failed(command.request, error.fault))
        except Exception as error:
            fault = InternalError(f"cannot take the request: {error!r}").fault
            self._failed.append(Failed(command.request, fault))

    def _accept(self, stream: Stream) -> None:
        self._streams[stream.request] = stream
        self._scheduler.enqueue(stream)

    def _accept_prepared(self, prepared: Prepared) -> None:
        deadline = self._preparing.pop(prepared.request, None)
        if prepared.stream is None:
            if deadline is not None and prepared.fault is not None:
                self._failed.append(Failed(prepared.request, prepared.fault))
        elif deadline is not None:
            prepared.stream.deadline = deadline
            self._accept(prepared.stream)
        else:
            prepared.stream.free()

    def _cancel(self, request: int) -> None:
        if stream := self._streams.get(request):
            stream.flush(self._deltas)
            self._finish(stream, "cancelled")
        elif self._preparing.pop(request, None) is not None:
            self._finished.append(Finished(request, "cancelled", Usage()))

    def _expire(self) -> None:
        """Those who have waited too long hear it."""
        now = time.monotonic()
        if not (self._scheduler.waiting or self._preparing) or now < self._expire_at:
            return
        self._expire_at = now + _EXPIRE_EVERY_S
        waited = self._loaded.params.max_wait_s
        for request in [one for one, until in self._preparing.copy().items() if now >= until]:
            del self._preparing[request]
            fault = NoCapacity(
                f"the model {self._name!r} had not read the request's prompt or constraint within "
                f"{waited:g} s (engine.max_wait_s)"
            ).fault
            self._failed.append(Failed(request, fault))
        late = [s for s in self._scheduler.waiting if now >= s.deadline and not s.started]
        for stream in late:
            self._release(stream)
            fault = NoCapacity(
                f"the model {self._name!r} had no room for the request within {waited:g} s "
                f"(engine.max_wait_s): {len(self._scheduler.decoding)} requests are running and "
                f"{len(self._scheduler.waiting)} waiting"
            ).fault
            self._failed.append(Failed(stream.request, fault))

    def _compute(self, batch: Batch[Stream]) -> None:
        if batch.chunks:
            self._prefill(batch)
        else:
            self._decode_rows()

    def _prefill(self, batch: Batch[Stream]) -> None:
        context = self._context
        self._rows = None
        end = 0
        for chunk in batch.chunks:
            rows = slice(end, end := end + chunk.stop - chunk.start)
            context.tokens[rows] = chunk.sequence.todo[chunk.start : chunk.stop]
            context.positions[rows] = np.arange(chunk.start, chunk.stop)
            context.sequences[rows] = chunk.sequence.slot
            context.outputs[rows] = 0
            context.outputs[end - 1] = chunk.is_last
        began = time.monotonic()
        self._decode(end)
        context.synchronize()
        self._scheduler.measured(end, time.monotonic() - began)
        for chunk in batch.chunks:
            stream = chunk.sequence
            self._kv.write(stream.slot, stream.todo[chunk.start : chunk.stop])
            if chunk.stop in stream.stops:
                self._memory.snapshot(stream.slot)
        self._scheduler.computed(batch)
        complete = [chunk.sequence for chunk in batch.chunks if chunk.is_last]
        if not complete:
            return
        logits = context.logits(len(complete))
        for row, stream in enumerate(complete):
            if stream.resumes:  # its next token was chosen before it was suspended
                continue
            if stream.is_unending:
                logits[row, self._end_ids] = -np.inf
            self._generated += 1
            self._take(stream, self._choose(stream, logits, row))

    def _decode_rows(self) -> None:
        rows, scheduler = self._rows, self._scheduler
        if rows is None or self._laid_out_at != scheduler.changes:
            self._laid_out_at = scheduler.changes
            rows = self._rows = Rows(
                scheduler.decoding,
                self._context,
                self._kv,
                end_ids=self._end_ids,
                widest_bridge=self._loaded.widest_bridge,
            )
        rows.prepare()
        self._decode(rows.size)
        streams = rows.streams
        self._generated += len(streams)
        logits = rows.logits()
        if rows.is_plain:
            tokens = logits.argmax(axis=1).tolist()
        else:
            tokens = self._choose_all(streams, logits)
        for stream, token in zip(streams, tokens, strict=True):
            self._take(stream, token)
        if self._laid_out_at == scheduler.changes:  # nobody has ended
            rows.advance([stream.token for stream in streams])

    def _decode(self, size: int) -> None:
        code = self._context.decode(size)
        if code == 0:
            return
        cause = "; ".join(llama.take_lines())
        if code in _REFUSED:
            raise _BatchRefusedError(f"llama.cpp: {_REFUSED[code]} ({code}) {cause}".rstrip())
        raise RuntimeError(f"llama_decode failed with {code} {cause}".rstrip())

    def _choose(self, stream: Stream, logits: np.ndarray, row: int) -> int | CortexError:
        forced = stream.forced
        if stream.sampler is None:
            return int(logits[row].argmax()) if forced is None else forced
        history = self._kv.tokens(stream.slot)
        try:
            return stream.sampler.choose(
                logits, row, history, len(stream.prompt), self._context, forced
            )
        except CortexError as error:
            return error

    def _choose_all(self, streams: list[Stream], logits: np.ndarray) -> list[int | CortexError]:
        def choose(row: int) -> int | CortexError:
            return self._choose(streams[row], logits, row)

        rows = range(len(streams))
        if len(rows) < 2 or logits.size < _THREADED_FROM or self._threads is None:
            return [choose(row) for row in rows]
        return list(self._threads.map(choose, rows))  # llama.cpp's samplers let go of the GIL

    def _take(self, stream: Stream, token: int | CortexError) -> None:
        if isinstance(token, CortexError):
            self._release(stream)
            self._failed.append(Failed(stream.request, token.fault))
        elif reason := stream.take(token, self._deltas):
            self._finish(stream, reason)

    def _finish(self, stream: Stream, reason: FinishReason) -> None:
        self._release(stream)
        finished = Finished(stream.request, reason, stream.usage, stream.stopped_by)
        self._finished.append(finished)

    def _release(self, stream: Stream) -> None:
        self._seats.leave(stream)
        del self._streams[stream.request]
        stream.free()

    def _drop(self, batch: Batch[Stream], fault: Fault) -> None:
        """The batch was refused; its sequences end, and nothing of them is trusted as cache."""
        streams = [*batch.decode, *(chunk.sequence for chunk in batch.chunks)]
        for stream in streams:
            self._release(stream)
            self._memory.drop(stream.slot)
            self._failed.append(Failed(stream.request, fault))

    def _fail_all(self, fault: Fault) -> None:
        for stream in list(self._streams.values()):
            self._release(stream)
            self._failed.append(Failed(stream.request, fault))

    def _start_over(self, error: Exception) -> None:
        cause = f"{self._name}: a step failed: {error or repr(error)}"
        self._fail_all(UpstreamFailed(cause).fault)
        self._flush()
        self._failures += 1
        if self._failures > 1:
            self._die(f"{cause}; so did the step before")
        try:
            self._context.free()
            self._context = self._loaded.open_context()
        except llama.LlamaError as second:
            self._die(f"{cause}; no new context: {second.message} {'; '.join(second.lines)}")
        self._reset()

    def _reset(self) -> None:
        """Empty bookkeeping for a fresh context."""
        info, context = self._loaded.info, self._context
        self._kv: KV
        if context.is_unified:
            self._kv = Pool(
                info.parallel,
                info.context,
                cells=info.cells,
                sequences=llama.MAX_SEQUENCES,
                host=self._host,
                space=self._space,
                tile=self._loaded.tile,
            )
        else:
            self._kv = Slots(
                info.parallel,
                info.context,
                can_trim=self._loaded.model.can_trim,
                host=self._host,
                space=self._space,
                tile=self._loaded.tile,
            )
        self._memory = Memory(context, self._kv)
        self._scheduler: Scheduler[Stream] = Scheduler(
            context.batch,
            context.ubatch,
            max_step_ms=self._loaded.params.max_step_ms,
            is_unified=context.is_unified,
        )
        self._seats = Seats(self._scheduler, self._memory)
        self._expire_at = 0.0
        self._rows: Rows | None = None
        self._laid_out_at = 0  # the scheduler's `changes`

"""A worker that misbehaves on command, for faults the real one cannot be made to commit.

`python scripted_worker.py SCRIPT --fd N --device ID`; SCRIPT is a comma-separated list of habits:

silent      never says Hello            mute        says Hello, then nothing ever again
garbage     sends what is no frame      dies        writes two lines to stderr and exits with 3
hangs       reports a step that runs longer and longer once a model is loaded
poisonous   exits with 9 on every load of a model called "poison"
slow        answers a load only after the file named by SLOW_UNTIL exists
clinging    does not end when it is told to

A prompt that contains "crash" ends it by SIGSEGV, once it has said that it started. A worker that
saves its sequences before it ends writes its pid; one that restores them says so in its Hello.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import msgspec

from cortex_core.errors import Fault
from cortex_core.outcome import Usage
from cortex_core.wire import ipc
from neuron.models.identity import identity_of

INFO = ipc.ModelInfo("test", 512, 512, 2, 100, 1000, 10, 20, 0.1)


class ScriptedWorker:
    def __init__(self, habits: set[str], sock: socket.socket) -> None:
        self.habits = habits
        self.sock = sock
        self.lock = threading.Lock()
        self.loaded: list[str] = []
        self.endless: dict[int, str] = {}  # requests that run, with their models
        self.since = time.monotonic()

    def say(self, report: ipc.Report) -> None:
        with self.lock:
            self.sock.sendall(ipc.encode(report))

    def main(self) -> None:
        if "dies" in self.habits:
            print("first line\nGGML_ASSERT(false) failed", file=sys.stderr, flush=True)
            sys.exit(3)
        if "garbage" in self.habits:
            self.sock.sendall(b"\x00\x00\x00\x02\xc1\xc1")
        if "silent" not in self.habits:
            self.say(ipc.Hello(os.getpid(), "scripted", restored()))
            if "mute" not in self.habits:
                threading.Thread(target=self.report, daemon=True).start()
        reader = ipc.Reader(ipc.Command)  # pyright: ignore[reportArgumentType]
        while chunk := self.sock.recv(65536):
            for command in reader.feed(chunk):
                self.obey(command)

    def report(self) -> None:
        while True:
            is_hung = "hangs" in self.habits
            step_s = time.monotonic() - self.since if is_hung else 0.0
            loads = [ipc.ModelLoad(model, 1, 1, 0, 0, step_s) for model in self.loaded]
            self.say(ipc.Progress(1, loads))
            time.sleep(0.05)

    def obey(self, command: object) -> None:
        match command:
            case ipc.Shutdown(save_to):
                if "clinging" in self.habits:
                    return
                if save_to:
                    Path(save_to, "sequences").write_text(str(os.getpid()))
                os._exit(0)
            case ipc.Load(op, "poison") if "poisonous" in self.habits:
                print(f"cannot stomach op {op}", file=sys.stderr, flush=True)
                os._exit(9)
            case ipc.Load(op, "refused" as model):
                self.say(ipc.LoadFailed(op, model, Fault("gguf_unsupported", "no such tensor")))
            case ipc.Load(op, model, path):
                while "slow" in self.habits and not os.path.exists(os.environ["SLOW_UNTIL"]):
                    time.sleep(0.01)
                if "hangs" in self.habits:
                    print("entering a long step", file=sys.stderr, flush=True)
                self.say(ipc.LoadProgress(op, 0.5))
                self.loaded.append(model)
                self.since = time.monotonic()
                files = identity_of(Path(path)) if os.path.exists(path) else ()
                self.say(ipc.Loaded(op, model, msgspec.structs.replace(INFO, files=files)))
            case ipc.Unload(op, model):
                if model in self.loaded:
                    self.loaded.remove(model)
                self.say(ipc.Unloaded(op, model))
            case ipc.Generate(request, model, "endless"):
                self.endless[request] = model
                started = [ipc.Started(request, 1, 0)]
                self.say(ipc.Step(model, started, [ipc.Delta(request, "…")]))
            case ipc.Cancel(request) if request in self.endless:
                finished = [ipc.Finished(request, "cancelled", Usage(1, 0, 1, 0))]
                self.say(ipc.Step(self.endless.pop(request), finished=finished))
            case ipc.Generate(request, model, str(prompt)) if "crash" in prompt:
                self.say(ipc.Step(model, [ipc.Started(request, 1, 0)]))
                print("a kernel failed", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            case ipc.Generate(request, model, str(prompt)):
                self.say(
                    ipc.Step(
                        model,
                        [ipc.Started(request, 1, 0)],
                        [ipc.Delta(request, prompt)],
                        [ipc.Finished(request, "stop", Usage(1, 0, 1, 0))],
                    )
                )


def restored() -> str:
    if "--restore" not in sys.argv:
        return "nothing"
    return Path(sys.argv[sys.argv.index("--restore") + 1], "sequences").read_text()


if __name__ == "__main__":
    fd = int(sys.argv[sys.argv.index("--fd") + 1])
    ScriptedWorker(set(sys.argv[1].split(",")), socket.socket(fileno=fd)).main()

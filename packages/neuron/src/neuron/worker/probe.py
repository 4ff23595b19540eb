"""Whether ggml's AMX kernels run on this machine, found out in a child process.

Some compilers build them so that the first matrix ends the process by SIGSEGV (GCC PR 114098; see
tools/build_flags.py for the build's side of it). A wheel or `pip install` may have been built that
way, and a worker that dies at every load tells nobody why.
"""

from __future__ import annotations

import os
import sys
from importlib.resources import files

from neuron.worker import llama
from neuron.worker.vocabulary import Vocabulary

__all__ = ["are_extra_kernels_sound"]


def are_extra_kernels_sound() -> bool:
    """Call before `llama.start` and before any thread: it forks where the build has AMX."""
    _, system = llama.versions()
    if "AMX_INT8 = 1" not in system:
        return True
    child = os.fork()
    if child == 0:
        _compute_and_exit()
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return True
    sys.stderr.write(
        "llama.cpp was built with AMX kernels that crash on this machine; going on without them, "
        "more slowly (its compiler was at fault: `make setup` avoids it)\n"
    )
    return False


def _compute_and_exit() -> None:
    try:
        llama.start()
        path = str(files("neuron") / "assets" / "tiny.gguf")
        model = llama.Model(path, Vocabulary(path), gpu_layers=0)
        context = llama.Context(
            model, cells=256, parallel=1, batch=32, threads=1, flash_attention=False
        )
        context.positions[:2] = (0, 1)
        context.decode(2)
    finally:
        os._exit(0)

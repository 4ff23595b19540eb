"""`python -m neuron.worker --fd N --device ID`: one worker process, for one device."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """SIGKILL when the parent dies, even if every thread of ours hangs in a driver. It follows the
    thread that started us; so a supervisor starts workers from a thread that lives as long as it
    does. A parent that died before this call has closed its end of the socket, and we read EOF."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    if os.getppid() != parent:
        sys.exit("worker: the parent died meanwhile")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m neuron.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the parent")
    parser.add_argument("--device", required=True, help='"cpu", "cuda:0", ...')
    parser.add_argument("--report-every", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument(
        "--restore", default="", metavar="DIR", help="sequences that a worker before has saved"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent
    if sys.platform == "linux":
        _die_with_parent()
    sock = socket.socket(fileno=options.fd)
    sock.set_inheritable(False)

    from neuron.worker.control import Worker  # imports llama.cpp: seconds, with CUDA
    from neuron.worker.probe import are_extra_kernels_sound

    worker = Worker(
        sock,
        options.device,
        extra_kernels=are_extra_kernels_sound(),
        report_every_s=options.report_every,
        restore=options.restore,
    )
    worker.run()


if __name__ == "__main__":
    main()

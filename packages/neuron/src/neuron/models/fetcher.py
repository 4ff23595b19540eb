"""`python -m neuron.models.fetcher`: download one model and end. A process of its own, so that
neither the neuron's event loop nor an unload ever waits for it: killing it ends it.

A FetchOrder comes as one line of JSON on stdin; FetchReports go out as lines on stdout. When stdin
ends, so does the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from cortex_core.errors import CortexError, Fault, UpstreamFailed
from neuron.models.hub import FetchOrder, failures_of, token_of

__all__ = ["FetchReport", "Teller", "bar_of", "main"]

_REPORT_EVERY_S = 0.2
_REPORT_BYTES = 10 << 20  # told at once: more may be long in coming


class FetchReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """`have_bytes` of all the files are here. `path`: of the first, when all are; `fault`: why they
    never will be."""

    have_bytes: int = 0
    path: str | None = None
    fault: Fault | None = None


class Teller:
    """Writes reports to a file descriptor, not too many of them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._have_bytes = 0
        self._told_bytes = 0
        self._told_at = 0.0

    def came(self, size: int) -> None:
        self._have_bytes += size
        is_due = time.monotonic() - self._told_at >= _REPORT_EVERY_S
        if is_due or self._have_bytes - self._told_bytes >= _REPORT_BYTES:
            self._told_at, self._told_bytes = time.monotonic(), self._have_bytes
            self.tell(FetchReport(self._have_bytes))

    def tell(self, report: FetchReport) -> None:
        os.write(self._fd, msgspec.json.encode(report) + b"\n")


def bar_of(teller: Teller) -> type:
    """What huggingface_hub takes for a progress bar."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # nobody watches it

        def update(self, n: float | None = 1) -> None:
            teller.came(int(n or 0))

        # Where a file is put together from chunks, what comes over the network is not what is on
        # the disk; a bar that has these two is told of it apart.

        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_transfer_postfix_str(self, postfix: str, refresh: bool = False) -> None:
            pass

    return Bar


def _fetch(order: FetchOrder, teller: Teller) -> str:
    from huggingface_hub import hf_hub_download

    paths: list[str] = []
    for name, size in order.files:
        with failures_of(order.label, order.repo):
            path = hf_hub_download(
                order.repo,
                name,
                revision=order.commit,
                cache_dir=order.cache_dir,
                endpoint=order.endpoint,
                token=token_of(order.endpoint, order.token),
                tqdm_class=bar_of(teller),
            )
        paths.append(path)
        _check_size(order, Path(path), size)
    return paths[0]


def _check_size(order: FetchOrder, path: Path, size: int) -> None:
    actual = path.stat().st_size
    if actual != size:
        raise UpstreamFailed(
            f"{order.repo}: {path.name} came with {actual} bytes from {order.label}, which had "
            f"promised {size}"
        )


def _end(*_: object) -> NoReturn:
    # Through the library, which removes the half of a file, and calls off what native code does for
    # it at this exception alone.
    raise KeyboardInterrupt


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the neuron decides when a Ctrl-C ends us
    teller = Teller(os.dup(1))
    os.dup2(2, 1)  # what a library prints must not be read as a report
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=FetchOrder)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        teller.tell(FetchReport(order.total_bytes, path=_fetch(order, teller)))
    except CortexError as error:
        teller.tell(FetchReport(fault=error.fault))
    except KeyboardInterrupt:
        sys.exit(1)


if __name__ == "__main__":
    main()

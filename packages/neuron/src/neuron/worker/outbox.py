"""Frames to the parent, from any thread, without ever making one wait for the reader."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque

from cortex_core.wire.ipc import Report, encode

__all__ = ["Outbox"]

_SEND_BUFFER_BYTES = 4 * 1024 * 1024


class Outbox:
    """Sends at once what the socket takes; a thread sends the rest when the socket takes more.

    So an engine is never held up by a parent that does not read, and a parent that blocks on
    sending a command to us cannot wait for us to read while we wait for it.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._socket = sock
        self._changed = threading.Condition()
        self._backlog: deque[memoryview] = deque()
        self._is_broken = False
        threading.Thread(target=self._send_backlog, name="outbox", daemon=True).start()

    def send(self, report: Report) -> None:
        frame = encode(report)
        with self._changed:
            if self._is_broken:
                return
            sent = 0 if self._backlog else self._try_send(frame)
            if sent < len(frame):
                self._backlog.append(memoryview(frame)[sent:])
                self._changed.notify_all()

    def _try_send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self._is_broken = True  # the parent is gone; who reads the socket ends the process
            self._backlog.clear()
            return len(data)

    def _send_backlog(self) -> None:
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        while True:
            with self._changed:
                while not self._backlog:
                    self._changed.wait()
            writable.poll()
            with self._changed:
                while self._backlog:
                    sent = self._try_send(self._backlog[0])
                    if self._is_broken:
                        break
                    if sent < len(self._backlog[0]):
                        self._backlog[0] = self._backlog[0][sent:]
                        break
                    self._backlog.popleft()
                self._changed.notify_all()

    def drain(self, timeout_s: float) -> None:
        """Wait until all is sent, or for `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._backlog and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

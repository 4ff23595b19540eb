"""A hub of models as huggingface_hub knows it: the API, downloads with ranges, tokens, and faults
on demand. In this process, on a free port of 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["HubServer", "serve_hub"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CHUNK_BYTES = 256 * 1024


class HubServer:
    """`repos`: repo → file → content. `token`: what every request must bring. `statuses`: repo →
    the status that its API answers with. `statuses_of_downloads`: what the next requests for
    contents get. `cuts`: how many more downloads break off in the middle.
    `held_at`: a download stops after so many bytes until `release()`; `is_held` says that one
    has. `claims`: file → the size the API claims. `redirects`: contents are at another origin.
    `is_silent`: nothing is answered until `release()`."""

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, dict[str, bytes]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what has happened, and behave."""
        self.token: str | None = None
        self.statuses: dict[str, int] = {}
        self.claims: dict[str, int] = {}
        self.statuses_of_downloads: list[int] = []
        self.cuts = 0
        self.held_at: int | None = None
        self.is_held = threading.Event()
        self.knows_ranges = True
        self.downloads: list[str] = []  # names of files that were asked for to their end
        self.begun_at: list[int] = []  # and from which byte on
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.tokens_elsewhere: list[str | None] = []
        self.redirects = False
        self.is_silent = False
        self._released = threading.Event()

    def release(self) -> None:
        self.held_at = None
        self.is_silent = False
        self._released.set()

    def wait(self) -> None:
        self.is_held.set()
        self._released.wait(60)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        self.hub.requests.append(format % args)

    def _answer(self, has_body: bool) -> None:
        hub, url = self.hub, urlsplit(self.path)
        path = unquote(url.path)
        sent = self.headers.get("authorization")
        if match := re.fullmatch(r"/elsewhere/([^/]+/[^/]+)/(.+)", path):
            hub.tokens_elsewhere.append(sent)
            self._download(match[1], match[2], has_body)
            return
        hub.tokens.append(sent)
        if hub.is_silent:
            hub.wait()
        if hub.token is not None and sent != f"Bearer {hub.token}":
            self._send(401, b'{"error": "Invalid username or password."}', has_body)
        elif path == "/api/models":
            author = parse_qs(url.query)["author"][0]
            found = [{"id": repo} for repo in hub.repos if repo.startswith(f"{author}/")]
            self._send(200, json.dumps(found).encode(), has_body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/main", path):
            self._describe(match[1], has_body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            if hub.redirects:
                self._redirect(match[1], match[2], has_body)
            else:
                self._download(match[1], match[2], has_body)
        else:
            self._send(404, b"{}", has_body)

    def _describe(self, repo: str, has_body: bool) -> None:
        hub = self.hub
        if repo not in hub.repos or repo in hub.statuses:
            status = hub.statuses.get(repo, 404)
            code = {"x-error-code": "RepoNotFound"} if status == 404 else {}
            self._send(status, b"{}", has_body, code)
            return
        siblings = [
            {"rfilename": name, "size": hub.claims.get(name, len(content)), "blobId": "0"}
            for name, content in hub.repos[repo].items()
        ]
        body = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
        self._send(200, json.dumps(body).encode(), has_body)

    def _redirect(self, repo: str, name: str, has_body: bool) -> None:
        """To another origin, as large files of the public hub are."""
        content = self.hub.repos[repo][name]
        origin = self.hub.url.replace("127.0.0.1", "localhost")
        headers = {
            "location": f"{origin}/elsewhere/{repo}/{name}",
            "x-linked-etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "x-linked-size": str(len(content)),
            "x-repo-commit": COMMIT,
        }
        self._send(302, b"", has_body, headers)

    def _download(self, repo: str, name: str, has_body: bool) -> None:
        hub = self.hub
        status = hub.statuses_of_downloads.pop(0) if has_body and hub.statuses_of_downloads else 200
        if status != 200:
            self._send(status, b"", has_body)
            return
        content = hub.repos.get(repo, {}).get(name)
        if content is None:
            self._send(404, b"", has_body, {"x-error-code": "EntryNotFound"})
            return
        headers = {
            "etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "x-repo-commit": COMMIT,
            "accept-ranges": "bytes",
        }
        status, start, end = 200, 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked and hub.knows_ranges:
            start = int(asked[1])
            end = min(int(asked[2]) + 1 if asked[2] else end, end)
            status = 206
            headers["content-range"] = f"bytes {start}-{end - 1}/{len(content)}"
        is_whole = has_body and (not asked or not asked[2])
        if is_whole:
            hub.downloads.append(name)
            hub.begun_at.append(start)
        self._send(status, content[start:end], has_body, headers, is_at_risk=is_whole)

    def _send(
        self,
        status: int,
        body: bytes,
        has_body: bool,
        headers: dict[str, str] | None = None,
        is_at_risk: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in ({"content-length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if not has_body:
            return
        hub, sent = self.hub, 0
        cut_at = len(body) // 2 if is_at_risk and hub.cuts > 0 else None
        while sent < len(body):
            if is_at_risk and hub.held_at is not None and sent >= hub.held_at:
                hub.wait()
            if cut_at is not None and sent >= cut_at:
                hub.cuts -= 1
                self.close_connection = True
                return
            self.wfile.write(body[sent : sent + _CHUNK_BYTES])
            sent += _CHUNK_BYTES


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle is what some tests are about."""


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.release()
        server.shutdown()
        server.server_close()
        thread.join()

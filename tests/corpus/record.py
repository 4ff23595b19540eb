"""Write down what real clients send: `python -m tests.corpus.record`.

Runs the tests of tests/e2e/clients, whose libraries are told an address where every request is
written down and passed on to the gateway. What was answered with 200 goes into one file for each
module of tests, a request a line, each body once; headers that tell of a key or a machine do not.
(What coding agents send is in the folder agents; see tests/corpus/scrub.py.)
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.e2e.conftest import Stack

FOLDER = Path(__file__).parent
CLIENTS = FOLDER.parent / "e2e" / "clients"
# Kept of a request's headers; what else there is tells of keys, machines and versions of Python.
KEPT = ("accept", "anthropic-beta", "anthropic-version", "content-type", "openai-beta")
HOP_BY_HOP = {"connection", "content-encoding", "content-length", "transfer-encoding"}


class Recorder:
    """A pytest plugin, and the address that it makes tests use. `requests` by module."""

    def __init__(self) -> None:
        self.requests: dict[str, dict[str, dict[str, Any]]] = {}
        self._test: tuple[str, str] = ("", "")
        self._behind = ""
        self._url: Future[str] = Future()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._test = (item.path.stem.removeprefix("test_"), item.name)

    def address(self, stack: Stack) -> str:
        self._behind = stack.gateway.url
        return self._url.result()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._url.set_result(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await asyncio.Event().wait()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, self._behind + request.path_qs, data=body, headers=headers
            ) as answer,
        ):
            if answer.status == 200 and body:
                self._keep(request, body)
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
            reply = web.StreamResponse(status=answer.status, headers=kept)
            await reply.prepare(request)
            async for piece in answer.content.iter_any():
                await reply.write(piece)
            await reply.write_eof()
            return reply

    def _keep(self, request: web.Request, body: bytes) -> None:
        module, test = self._test
        value = json.loads(body)
        headers = {name: request.headers[name] for name in KEPT if name in request.headers}
        key = json.dumps([request.path_qs, headers, value], sort_keys=True)
        entry = {"name": test, "path": request.path_qs, "headers": headers, "body": value}
        self.requests.setdefault(module, {}).setdefault(key, entry)


def main() -> int:
    recorder = Recorder()
    Stack.url = property(recorder.address)  # type: ignore[assignment]
    ignored = f"--ignore={CLIENTS / 'test_retries.py'}"  # which asks the same again
    code = pytest.main(["-q", str(CLIENTS), ignored], [recorder])
    for module, requests in recorder.requests.items():
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in requests.values()]
        (FOLDER / f"{module}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{len(lines)} requests of {module}")
    return code


if __name__ == "__main__":
    sys.exit(main())

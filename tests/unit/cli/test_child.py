"""A child process is watched, quoted and stopped for certain. Real processes of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cortex_cli.child import Child
from cortex_cli.failure import Failure

POLITE = "import time\nprint('up at 7', flush=True)\ntime.sleep(60)\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + POLITE

Start = Callable[[str], "contextlib.AbstractAsyncContextManager[Child]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    @asynccontextmanager
    async def started(source: str) -> AsyncIterator[Child]:
        (tmp_path / "child_under_test.py").write_text(source)
        environment = {"PYTHONPATH": str(tmp_path)}
        child = Child("helper", "child_under_test", [], environment, tmp_path / "helper.log")
        await child.start()
        try:
            yield child
        finally:
            await child.stop(0)

    return started


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


async def test_what_it_says_is_found(start: Start) -> None:
    async with start(POLITE) as child:
        assert (await child.said(r"^up at (\d)$", 10))[1] == "7"


async def test_its_death_quotes_its_last_lines(start: Start) -> None:
    async with start("print('cannot open the door')\nraise SystemExit(3)\n") as child:
        with pytest.raises(Failure, match="helper ended with exit code 3") as caught:
            await child.said("up", 10)
    assert caught.value.details == ["cannot open the door"]


async def test_a_kill_is_told_by_the_signals_name(start: Start) -> None:
    async with start(POLITE) as child:
        await child.said("up", 10)
        child.kill()
        await child.ended()
        assert "helper was killed by SIGKILL" in child.death().message


async def test_silence_ends_at_the_timeout(start: Start) -> None:
    async with start("import time\ntime.sleep(60)\n") as child:
        with pytest.raises(Failure, match="was not up within"):
            await child.said("up", 0.1)


async def test_a_polite_one_is_stopped_by_sigterm(start: Start) -> None:
    async with start(POLITE) as child:
        await child.said("up", 10)
        await child.stop(10)
        assert await child.ended() == -signal.SIGTERM


async def test_a_stubborn_one_is_killed_when_patience_ends(start: Start) -> None:
    async with start(STUBBORN) as child:
        await child.said("up", 10)
        await child.stop(0.1)
        assert await child.ended() == -signal.SIGKILL


async def test_a_grandchild_left_behind_is_killed_too(start: Start) -> None:
    source = (
        "import subprocess, sys, time\n"
        "code = 'import time; time.sleep(60)'\n"
        "print('grandchild', subprocess.Popen([sys.executable, '-c', code]).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    async with start(source) as child:
        grandchild = int((await child.said(r"grandchild (\d+)", 10))[1])
        await child.stop(10)
        deadline_s = time.monotonic() + 5
        while _is_alive(grandchild):
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.02)


async def test_a_folder_of_its_name_is_not_run_instead(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = tmp_path / "elsewhere" / "child_under_test"
    impostor.mkdir(parents=True)
    (impostor / "__init__.py").touch()
    (impostor / "__main__.py").write_text("print('impostor')\n")
    monkeypatch.chdir(impostor.parent)
    async with start(POLITE) as child:
        assert await child.said("up", 10)


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux feature")
async def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(POLITE)
    (tmp_path / "parent.py").write_text(
        "import asyncio, pathlib\n"
        "from cortex_cli.child import Child\n"
        "async def main():\n"
        f"    child = Child('x', 'sleeper', [], {{}}, pathlib.Path({str(tmp_path)!r}, 'x.log'))\n"
        "    await child.start()\n"
        "    await child.said('up', 10)\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        tmp_path / "parent.py",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert parent.stdout is not None
    child_pid = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    parent.kill()
    await parent.wait()
    deadline_s = time.monotonic() + 5
    while _is_alive(child_pid):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)

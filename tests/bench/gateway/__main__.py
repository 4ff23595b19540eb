"""`python -m tests.bench.gateway`: prints one table; every figure in it is from this one run."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.gateway.load import PATHS
from tests.bench.gateway.targets import TARGETS, Target, running_backend

WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"m","messages":[{"role":"user","content":"What is the capital of France?"}]}'
"""

# The load generator's streams start over half of its two seconds of warming up.
RAMP_S = 1.5

COLUMNS = (
    ("target", "{name}"),
    ("req/s", "{requests_per_s:,.0f}"),
    ("of direct", "{ratio:.3f}"),
    ("latency p50/p99 ms", "{latency_p50:.2f} / {latency_p99:.2f}"),
    ("chunks/s", "{events_per_s:,.0f}"),
    ("TTFT p50/p99 ms", "{ttft_p50:.2f} / {ttft_p99:.2f}"),
    ("added TTFT", "{added_ttft_p50:+.2f} / {added_ttft_p99:+.2f}"),
    ("gap p50/p99 ms", "{gap_p50:.2f} / {gap_p99:.2f}"),
    ("added gap p99", "{added_gap_p99:+.2f}"),
    ("CPU µs per req", "{us_per_request:.0f}"),
    ("CPU µs per chunk", "{us_per_chunk:.1f}"),
    ("RSS MB", "{resident_mb:.0f}"),
)


def wrk(target: Target, seconds: int, connections: int, script: Path) -> dict[str, float]:
    """Requests per second and latency percentiles in ms, small whole answers, kept alive."""
    binary = shutil.which("wrk")
    if binary is None:
        raise LookupError("wrk is not installed (apt-get install wrk)")
    command = [binary, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    output = subprocess.run(
        [*command, f"http://{target.address}/v1/chat/completions"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if bad := re.search(r"Non-2xx or 3xx responses: (\d+)", output):
        print(f"  {bad[0]}", file=sys.stderr)
    if bad := re.search(r"Socket errors: .*", output):
        print(f"  {bad[0]}", file=sys.stderr)
    found = {name: _ms(output, part) for name, part in (("p50", "50%"), ("p99", "99%"))}
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    return {"requests_per_s": float(rate[1])} | {f"latency_{k}": v for k, v in found.items()}


def _ms(output: str, part: str) -> float:
    match = re.search(rf"^\s+{re.escape(part)}\s+([\d.]+)(us|ms|s)\s*$", output, re.MULTILINE)
    assert match, output
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]


def streams(target: Target, path: str, seconds: float, count: int) -> dict[str, float]:
    """Times in ms of `count` paced streams."""
    command = [sys.executable, "-m", "tests.bench.gateway.load", target.address, "--path", path]
    command += ["--streams", str(count), "--for-s", str(seconds)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(output)
    if found["broken"]:
        print(f"  {found['broken']} of {found['streams']} streams broke off", file=sys.stderr)
    times = {f"{k}_{p}": v * 1000 for k in ("gap", "ttft") for p, v in found[k].items()}
    return {"events_per_s": found["events_per_s"]} | times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=10, help="per measurement")
    parser.add_argument("--connections", type=int, default=64, help="for wrk, and streams")
    parser.add_argument("--chunks-per-s", type=float, default=12_000, help="of all streams")
    parser.add_argument("--events", type=int, default=400, help="per stream")
    parser.add_argument("--spread", action="store_true", help="each stream on its own beat")
    parser.add_argument("--only", choices=("requests", "streams"))
    parser.add_argument(
        "--paths", nargs="+", choices=list(PATHS), default=["/v1/chat/completions"],
        help="the dialects of the streams; each is a line of its own",
    )  # fmt: skip
    given = parser.parse_args()
    gap_ms = 1000 * given.connections / given.chunks_per_s
    pace = "each on its own beat" if given.spread else "all in one step, as an engine does"
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {given.connections} connections;"
        f" streams of {given.events} events, one per {gap_ms:.2f} ms, {pace}"
    )
    rows: list[dict[str, Any]] = []
    with (
        running_backend(gap_ms, given.events, given.spread) as backend,
        tempfile.TemporaryDirectory(prefix="bench-gateway-") as scratch,
    ):
        script = Path(scratch, "post.lua")
        script.write_text(WRK_SCRIPT, "utf-8")
        for name in given.targets:
            print(f"measuring {name}", file=sys.stderr)
            folder = Path(scratch, name)
            folder.mkdir()
            with TARGETS[name](backend, folder) as target:
                wrk(target, 2, given.connections, script)
                for path in given.paths:
                    row = _measured(target, path, given, script)
                    rows.append({"name": f"{name} {path}" if len(given.paths) > 1 else name} | row)
                    _compare(rows[-1], rows[0])
                    print(_line(rows[-1]), file=sys.stderr)
    print(_table(rows))
    return 0


def _measured(target: Target, path: str, given: argparse.Namespace, script: Path) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if given.only != "streams" and path == "/v1/chat/completions":
        began = target.cpu_s
        row |= wrk(target, given.seconds, given.connections, script)
        used = (target.cpu_s - began) / given.seconds
        row["us_per_request"] = 1e6 * used / row["requests_per_s"]
    if given.only != "requests":
        began = target.cpu_s
        row |= streams(target, path, given.seconds, given.connections)
        used = (target.cpu_s - began) / (given.seconds + RAMP_S)
        row["us_per_chunk"] = 1e6 * used / row["events_per_s"]
    row["resident_mb"] = target.resident_mb
    return row


def _compare(row: dict[str, Any], first: dict[str, Any]) -> None:
    if "requests_per_s" in row:
        row["ratio"] = row["requests_per_s"] / first["requests_per_s"]
    for name in ("ttft_p50", "ttft_p99", "gap_p99"):
        if name in row:
            row[f"added_{name}"] = row[name] - first[name]


class _Blank(dict[str, Any]):
    def __missing__(self, key: str) -> float:
        return float("nan")


def _cells(row: dict[str, Any]) -> list[str]:
    cells = (form.format_map(_Blank(row)) for _, form in COLUMNS)
    return ["–" if "nan" in cell else cell for cell in cells]  # noqa: RUF001 - a dash, for people


def _line(row: dict[str, Any]) -> str:
    return "  " + " | ".join(_cells(row))


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [[title for title, _ in COLUMNS], *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    texts = [
        "| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


if __name__ == "__main__":
    sys.exit(main())

"""The whole way in one command: ``python -m tools.tiny --out FOLDER``.

Trains, exports to ``FOLDER/tiny.gguf`` and evaluates that file. Exits with the evaluation's
status, so a model that falls short is a failure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything written")
    out: Path = parser.parse_args().out
    gguf = str(out / "tiny.gguf")
    steps = (
        ("tools.tiny.train", "--out", str(out)),
        ("tools.tiny.export", "--run", str(out), "--gguf", gguf),
        ("tools.tiny.evaluate", "--gguf", gguf),
    )
    for step in steps:
        # A process each: training must not share its memory and threads with the evaluation.
        status = subprocess.run([sys.executable, "-m", *step], check=False).returncode
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

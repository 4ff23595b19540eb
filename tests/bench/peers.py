"""Peers and models that benchmarks compare with, built once into a cache outside the tree.

`llama-server` comes from the llama.cpp sources inside the llama-cpp-python source distribution
that the neuron itself uses: same kernels, same flags, same machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from tools.build_flags import sound_flags
from tools.make_gguf import PRESETS, make_gguf

__all__ = ["CACHE", "installed", "llama_server", "model", "model_pair", "nginx"]

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cortex-bench"

_CMAKE_FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
]
_PAIR = ((1, "one"), (2, "other"))


def llama_server() -> Path:
    """The peer's binary; built on first use (about five minutes on two cores)."""
    release = version("llama-cpp-python")
    home = CACHE / f"llama.cpp-{release}"
    binary = home / "build" / "bin" / "llama-server"
    if binary.exists():
        return binary
    print(f"building llama-server from llama-cpp-python {release} (once)", file=sys.stderr)
    home.mkdir(parents=True, exist_ok=True)
    requirement = f"llama-cpp-python=={release}"
    _run(_pip("download", "--no-deps", "--no-binary", ":all:", requirement, "-d", str(home)))
    (archive,) = home.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(home / "src", filter="data")
    (source,) = (home / "src").glob("*/vendor/llama.cpp")
    build = str(home / "build")
    flags = [f"-DCMAKE_{language}_FLAGS={sound_flags()}" for language in ("C", "CXX")]
    _run(["cmake", "-S", str(source), "-B", build, *_CMAKE_FLAGS, *flags])
    _run(["cmake", "--build", build, "--target", "llama-server", "-j", str(os.cpu_count() or 1)])
    shutil.rmtree(home / "src")
    return binary


def nginx() -> Path:
    """Raises LookupError."""
    binary = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if binary is None:
        raise LookupError("nginx is not installed (apt-get install nginx-light)")
    return Path(binary)


def installed(requirement: str, command: str) -> Path:
    """The folder of commands of a virtual environment that has it; made on first use. `command`:
    one that it brings."""
    home = CACHE / requirement.partition("[")[0]
    if not (home / "bin" / command).exists():
        print(f"installing {requirement} (once)", file=sys.stderr)
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(home / "bin" / "python"), "-m", "pip", "install", "-q", requirement])
    return home / "bin"


def model(preset: str, kind: str) -> Path:
    """A random-weight GGUF of a preset shape and quantisation, made on first use."""
    return _made(CACHE / "models" / f"{preset}-{kind}.gguf", preset, kind, seed=0)


def model_pair(preset: str, kind: str) -> tuple[Path, Path]:
    """Two such models of different weights, alone in a folder."""
    folder = CACHE / f"pair-{preset}-{kind}"
    one, other = (_made(folder / f"{name}.gguf", preset, kind, seed) for seed, name in _PAIR)
    return one, other


def _made(path: Path, preset: str, kind: str, seed: int) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_gguf(path, PRESETS[preset], file_type=kind, seed=seed)
    return path


def _pip(*arguments: str) -> list[str]:
    """pip in a throw-away environment: the project's own has none."""
    home = CACHE / "pip"
    if not (home / "bin" / "pip").exists():
        _run([sys.executable, "-m", "venv", str(home)])
    return [str(home / "bin" / "pip"), "--disable-pip-version-check", *arguments]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")

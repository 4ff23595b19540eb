"""Print the flags `uv sync` needs so that llama.cpp is compiled rightly by this machine's compiler.

GCC before 11.5, 12.4 and 13.3 tells its optimiser only of the first 8 bytes that
`_tile_loadconfig` reads (GCC PR 114098), so that on a CPU with AMX ggml loads half a tile
configuration and dies by SIGSEGV at the first matrix. Debian 12's GCC is one of them. There AMX is
left out; the AVX-512 kernels take its place.
"""

from __future__ import annotations

import os
import shlex
import subprocess

_PROBE = "#include <immintrin.h>\n#ifdef __AMX_TILE__\ncortex_has_amx\n#endif\n"
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def compiles_amx_wrongly(preprocessed: str) -> bool:
    """Whether `_PROBE`, preprocessed for the native CPU, shows AMX behind an inline-assembler
    `ldtilecfg`, which is what the builtin replaced when the defect was mended."""
    has_amx = "cortex_has_amx" in preprocessed
    return has_amx and 'volatile ("ldtilecfg' in preprocessed


def sound_flags() -> str:
    """Compiler flags for C and C++, perhaps none."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    try:
        probed = subprocess.run(
            [*compiler, "-march=native", "-E", "-x", "c++", "-"],
            input=_PROBE,
            capture_output=True,
            text=True,
        ).stdout
    except OSError:
        return ""  # no compiler: the build itself will say so better
    return _NO_AMX if compiles_amx_wrongly(probed) else ""


def main() -> None:
    flags = sound_flags()
    for language in ("C", "CXX") if flags else ():
        setting = f"llama-cpp-python:cmake.define.CMAKE_{language}_FLAGS={flags}"
        print(shlex.join(["--config-settings-package", setting]))


if __name__ == "__main__":
    main()

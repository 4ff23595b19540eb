"""The compiler defect that GCC mended in 11.5, 12.4 and 13.3, told by its header."""

from __future__ import annotations

from tools.build_flags import compiles_amx_wrongly

_BROKEN = '__asm__ volatile ("ldtilecfg\\t%X0" :: "m" (*((const void **)__config)));'
_MENDED = "__builtin_ia32_ldtilecfg (__config);"


def test_the_inline_assembler_on_a_cpu_with_amx_is_the_defect() -> None:
    assert compiles_amx_wrongly(_BROKEN + "\ncortex_has_amx\n")


def test_the_builtin_is_sound() -> None:
    assert not compiles_amx_wrongly(_MENDED + "\ncortex_has_amx\n")


def test_a_cpu_without_amx_needs_no_flags() -> None:
    assert not compiles_amx_wrongly(_BROKEN)

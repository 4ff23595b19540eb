"""Six models of different sizes, random weights, and how a gateway lists them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tools.make_gguf import PRESETS, make_gguf

__all__ = ["MODELS", "catalogue", "make_models"]

# Name → width and layers. What they take grows with both: some 7 to 26 MiB as they are loaded
# here, several of which fit on a node, but never all.
_SIZES = {
    "xs": (128, 4),
    "s": (192, 4),
    "m": (192, 8),
    "l": (256, 6),
    "xl": (256, 8),
    "xxl": (288, 8),
}
MODELS = [f"{name}.gguf" for name in _SIZES]


def make_models(folder: Path) -> Path:
    """The files, in a folder that neurons may load from; returns it."""
    for seed, (name, (width, layers)) in enumerate(_SIZES.items()):
        shape = dataclasses.replace(
            PRESETS["toy"], width=width, layers=layers, ffn=2 * width, vocab=1500
        )
        make_gguf(folder / f"{name}.gguf", shape, seed=seed)
    return folder


def catalogue(**more: str) -> str:
    """A models.toml with all of them. more: further lines of a model's entry, by its name without
    the ending."""
    return "".join(f'[[models]]\nid = "{name}.gguf"\n{more.get(name, "")}\n' for name in _SIZES)

"""Which of a repo's files is meant by a quant tag, or by none. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["choose", "tags_of", "whole_models"]

_PREFERRED = ("Q4_K_M", "Q8_0")  # what is wanted where nobody says: small and good, then exact
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")
_TAG = re.compile(
    r"(?<![A-Za-z0-9])(?:UD-)?"
    r"(?:I?Q[1-8](?:_[0-9A-Z]+)*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|FP?16|FP?32)"
    r"(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_NO_MODELS = ("mmproj", "imatrix")  # a projector of images and a record of calibration


def whole_models(names: Iterable[str]) -> dict[str, list[str]]:
    """Of a repo's files, the models that are there in all their parts: the first file of each with
    all its files in order. Sorted by name."""
    sets: dict[str, dict[int, str]] = {}
    for name in names:
        base = name.rpartition("/")[2].lower()
        if not name.endswith(".gguf") or any(word in base for word in _NO_MODELS):
            continue
        part = _PART.search(name)
        key = f"{name[: part.start()]} of {part[2]}" if part else name
        sets.setdefault(key, {})[int(part[1]) if part else 1] = name
    models: dict[str, list[str]] = {}
    for files in sets.values():
        part = _PART.search(next(iter(files.values())))
        count = int(part[2]) if part else 1
        if sorted(files) == list(range(1, count + 1)):
            models[files[1]] = [files[n] for n in range(1, count + 1)]
    return dict(sorted(models.items()))


def choose(firsts: Iterable[str], tag: str | None) -> str | None:
    """The model that a tag means, in any case of letters: one whose name ends in it, else one that
    contains it as a word, such as in a folder's name. Without a tag the preferred quants, else the
    first by name. None when there is none."""
    firsts = sorted(firsts)
    if tag is not None:
        return _best(firsts, tag)
    found = (_best(firsts, preferred) for preferred in _PREFERRED)
    return next((first for first in found if first), firsts[0] if firsts else None)


def tags_of(firsts: Iterable[str]) -> dict[str, str]:
    """Tag → file: what to call each model of a repo; one without a quant in its name goes by its
    file's name."""
    tags: dict[str, str] = {}
    for first in sorted(firsts):
        found = _TAG.findall(_stem(first))
        tag = found[-1] if found else first.rpartition("/")[2]
        tags.setdefault(tag, first)
    return tags


def _best(firsts: list[str], tag: str) -> str | None:
    word = re.compile(rf"(?<![a-z0-9]){re.escape(tag.lower())}(?![a-z0-9_])")
    found = [first for first in firsts if word.search(first.lower())]
    if not found:
        return None
    ending = tag.lower().removesuffix(".gguf")
    return min(found, key=lambda first: (not _stem(first).lower().endswith(ending), len(first)))


def _stem(first: str) -> str:
    return _PART.sub("", first).removesuffix(".gguf")

"""From a model id to a file, within what the operator allows.

`cortex/tiny` is the model inside this package. A path is allowed below a folder of `models.local`,
or when the operator named that very file as a default model. Symlinks are followed before the
question is asked: a link inside an allowed folder is no way out of it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

from cortex_core.errors import Forbidden, InvalidRequest, ModelNotFound, PreflightFailed

__all__ = ["TINY", "Resolver"]

TINY = "cortex/tiny"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_MOST_LISTED = 2000


class Resolver:
    """`local`: folders whose GGUF files may be loaded. `named`: model ids from the configuration
    or the command line; those that are paths are allowed wherever they are."""

    def __init__(self, local: Iterable[str] = (), named: Iterable[str] = ()) -> None:
        self._folders = [Path(folder).resolve() for folder in local]
        self._named = {Path(name).resolve() for name in named if os.path.isabs(name)}

    def resolve(self, model: str) -> Path:
        """The file behind an id; that it exists is not promised for a path.

        Raises ModelNotFound, Forbidden, InvalidRequest or PreflightFailed. Touches the disk.
        """
        if not model or "\0" in model or len(model) > 4096:
            raise InvalidRequest("model: not a model id or path", param="model")
        if model == TINY:
            return Path(str(files("neuron") / "assets" / "tiny.gguf"))
        try:
            return self._absolute(model) if os.path.isabs(model) else self._below(model)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symlinks
            raise PreflightFailed(
                f"{model}: cannot be read: {error}", kind="gguf_unreadable", param="model"
            ) from None

    def known(self) -> list[str]:
        """Ids that could be loaded now: `cortex/tiny` and what lies in the allowed folders."""
        return [TINY, *self._listing()]

    def _absolute(self, model: str) -> Path:
        path = Path(model).resolve()
        if path in self._named or any(path.is_relative_to(folder) for folder in self._folders):
            return path
        raise self._forbidden(model)

    def _below(self, model: str) -> Path:
        escapes = False
        for folder in self._folders:
            path = (folder / model).resolve()
            if not path.is_relative_to(folder):
                escapes = True
            elif path.exists():
                return path
        if escapes:
            raise self._forbidden(model)
        if self._folders and model.endswith(".gguf"):
            where = ", ".join(str(folder) for folder in self._folders)
            raise PreflightFailed(
                f"{model}: no such file below {where}{self._near(model)}",
                kind="gguf_missing",
                param="model",
            )
        raise self._unknown(model)

    def _forbidden(self, model: str) -> Forbidden:
        folders = ", ".join(str(folder) for folder in self._folders) or "none"
        return Forbidden(
            f"{model!r} is outside the folders that may be loaded from ({folders}); to allow it, "
            f"add its folder to models.local or name it in [[default_models]]",
            param="model",
        )

    def _unknown(self, model: str) -> ModelNotFound:
        text = f"no such model: {model!r}{self._near(model)}"
        if _HUB_ID.fullmatch(model):
            text += "; models of a hub cannot be loaded by name"
        return ModelNotFound(
            f"{text}; {TINY!r} and GGUF files (an absolute path, or one below a folder of "
            f"models.local) can be loaded",
            param="model",
        )

    def _near(self, model: str) -> str:
        known = self.known()
        near = difflib.get_close_matches(model, known, n=3, cutoff=0.6)
        if not near:
            # A person types the file's name and forgets its folder, or its ending.
            stem = Path(model).name.removesuffix(".gguf").lower()
            near = [name for name in known if len(stem) > 2 and stem in name.lower()][:3]
        return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""

    def _listing(self) -> Iterator[str]:
        seen = 0
        for folder in self._folders:
            for root, folders, names in os.walk(folder):
                folders.sort()
                for name in sorted(names):
                    seen += 1
                    if seen > _MOST_LISTED:
                        return
                    if name.endswith(".gguf"):
                        yield str(Path(root, name).relative_to(folder))

"""From a model id to a file, within what the operator allows, or to what a hub has.

`cortex/tiny` is the model inside this package. A path is allowed below a folder of `models.local`,
or when the operator named that very file as a default model. Symlinks are followed before the
question is asked: a link inside an allowed folder is no way out of it. What no folder has and looks
like `org/name[:QUANT]` is a hub's.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path

import msgspec

from cortex_core.errors import Forbidden, InvalidRequest, ModelNotFound, PreflightFailed
from neuron.models.hub import Hub, HubModel

__all__ = ["TINY", "KnownModel", "Resolver"]

TINY = "cortex/tiny"
_OURS = "cortex/"  # names with this beginning are never asked of a hub
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<tag>[\w.-]+))?")
_MOST_LISTED = 2000


class KnownModel(msgspec.Struct, frozen=True):
    """Something that could be loaded without a download. `source`: the hub it once came from."""

    id: str
    source: str | None = None


class Resolver:
    """`local`: folders whose GGUF files may be loaded. `named`: model ids from the configuration
    or the command line; those that are paths are allowed wherever they are. `hubs` by name, in the
    order they are looked in."""

    def __init__(
        self,
        local: Iterable[str] = (),
        named: Iterable[str] = (),
        hubs: Mapping[str, Hub] | None = None,
    ) -> None:
        self._hubs = dict(hubs or {})
        self._folders = [Path(folder).resolve() for folder in local]
        self._named = {Path(name).resolve() for name in named if os.path.isabs(name)}

    def resolve(self, model: str, source: str | None = None) -> Path | HubModel:
        """The file behind an id, that it exists is not promised for a path; or what a hub has.
        `source`: that hub and no other.

        Raises ModelNotFound, Forbidden, InvalidRequest, PreflightFailed, or as `Hub.find`. Touches
        the disk, and the network where `is_of_hub` and no disk has it.
        """
        self._check_source(model, source)
        if self.is_of_hub(model):
            return self._of_hub(model, source)
        return self.file_of(model)

    def is_of_hub(self, model: str) -> bool:
        """Whether it is to be looked for in hubs. Touches the disk."""
        found = _HUB_ID.fullmatch(model)
        if found is None or not self._hubs or model.startswith(_OURS):
            return False
        return not found["repo"].endswith(".gguf") and not self._is_in_a_folder(model)

    def file_of(self, model: str) -> Path:
        """The file behind an id that is none of a hub's. Raises as `resolve`."""
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

    def known(self) -> list[KnownModel]:
        """What could be loaded now: `cortex/tiny`, what lies in the allowed folders, and what the
        hubs' caches have. Touches the disk."""
        return [
            KnownModel(TINY),
            *map(KnownModel, self._listing()),
            *(KnownModel(model, hub.name) for hub in self._hubs.values() for model in hub.known()),
        ]

    # hubs

    def _check_source(self, model: str, source: str | None) -> None:
        if source is None:
            return
        if source not in self._hubs:
            known = ", ".join(self._hubs) or "none"
            raise InvalidRequest(
                f"source: there is no {source!r} here; sources: {known}", param="source"
            )
        if not self.is_of_hub(model):
            raise InvalidRequest(
                f"source: {model!r} is a file of this node, not a hub's", param="source"
            )

    def _of_hub(self, model: str, source: str | None) -> Path | HubModel:
        found = _HUB_ID.fullmatch(model)
        assert found is not None
        repo, tag = found["repo"], found["tag"]
        hubs = [self._hubs[source]] if source is not None else list(self._hubs.values())
        for hub in hubs:
            if path := hub.cached(repo, tag):
                return path
        return hubs[0].find(repo, tag)

    def _is_in_a_folder(self, model: str) -> bool:
        try:
            return any((folder / model).exists() for folder in self._folders)
        except OSError:  # such as a name that no file can have
            return False

    # files

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
        if _HUB_ID.fullmatch(model) and not model.startswith(_OURS):
            text += "; this node has no hub to ask (models.sources)"
        return ModelNotFound(
            f"{text}; {TINY!r} and GGUF files (an absolute path, or one below a folder of "
            f"models.local) can be loaded",
            param="model",
        )

    def _near(self, model: str) -> str:
        known = [known.id for known in self.known()]
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

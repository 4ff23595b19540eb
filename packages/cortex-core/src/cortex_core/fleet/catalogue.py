"""What could be served, by which name, and how it is to be kept. Says nothing of what is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from cortex_core.config.models import ModelEntry, ModelsConfig

__all__ = ["Catalogue"]

_MOST_NEAR = 3


class Catalogue:
    """The entries and aliases of `models.toml`, as checked by `load_models`."""

    def __init__(
        self, entries: Iterable[ModelEntry] = (), aliases: Mapping[str, str] | None = None
    ) -> None:
        self._entries = {entry.id: entry for entry in entries}
        self._aliases = dict(aliases or {})

    @classmethod
    def of(cls, config: ModelsConfig) -> Catalogue:
        return cls(config.models, config.aliases)

    @property
    def ids(self) -> tuple[str, ...]:
        """The listed models' ids, as the operator wrote and ordered them."""
        return tuple(self._entries)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Alias → model id; the model need not be listed."""
        return self._aliases

    def __contains__(self, model: str) -> bool:
        """Whether the operator listed this id; an alias is no id."""
        return model in self._entries

    def resolve(self, name: str) -> str:
        """The id behind what a client asked for; a name that is no alias is its own."""
        return self._aliases.get(name, name)

    def entry(self, model: str) -> ModelEntry:
        """How a model is to be kept; one that is not listed has every default."""
        return self._entries.get(model) or ModelEntry(id=model)

    def near(self, name: str, held: Iterable[str] = ()) -> list[str]:
        """Up to three names that a client who wrote `name` may have meant, the nearest first:
        of the listed ids, the aliases, and the models that nodes hold or could load (`held`)."""
        names = {**dict.fromkeys(self._entries), **dict.fromkeys(self._aliases)}
        by_lower = {known.lower(): known for known in [*held, *names]}
        wanted = name.lower()
        found = difflib.get_close_matches(wanted, by_lower, n=_MOST_NEAR)
        # People forget the folder before a name and the tag behind it.
        found += [known for known in by_lower if len(wanted) > 2 and wanted in known]
        return [by_lower[known] for known in dict.fromkeys(found)][:_MOST_NEAR]

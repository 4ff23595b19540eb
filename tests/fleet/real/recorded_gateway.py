"""`python -m tests.fleet.real.recorded_gateway --config FILE --record FILE`: the gateway as it is,
whose conductor's every stimulus, and what it said to it, is written down, one JSON value a line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cortex_core.config.gateway import load_gateway_config
from cortex_core.config.models import ModelEntry
from cortex_core.fleet.catalogue import Catalogue
from cortex_core.fleet.conductor import Conductor, Policy
from cortex_core.fleet.events import Instruction, Stimulus
from cortex_core.fleet.ledger import Ledger
from cortex_gateway import app, serve

__all__ = ["Configured", "Handled", "Line"]


class Configured(msgspec.Struct, frozen=True, tag=True):
    """The first line, at 0, and one for each reload."""

    at: float
    entries: list[ModelEntry]
    aliases: dict[str, str]
    policy: Policy
    nodes: list[str]
    out: list[Instruction] = []


class Handled(msgspec.Struct, frozen=True, tag=True):
    """`at`: the moment as the conductor was told it, in monotonic seconds."""

    at: float
    stimulus: Stimulus
    out: list[Instruction]


Line = Configured | Handled


class RecordedConductor(Conductor):
    path: Path

    def __init__(
        self,
        catalogue: Catalogue,
        policy: Policy,
        nodes: Iterable[str],
        ledger: Ledger | None = None,
    ) -> None:
        nodes = list(nodes)
        super().__init__(catalogue, policy, nodes, ledger)
        self._file = self.path.open("ab")
        self._write(_configured(0.0, catalogue, policy, nodes, []))

    def handle(self, stimulus: Stimulus, now: float) -> list[Instruction]:
        out = super().handle(stimulus, now)
        self._write(Handled(now, stimulus, out))
        return out

    def configured(
        self, catalogue: Catalogue, policy: Policy, nodes: Iterable[str], now: float
    ) -> list[Instruction]:
        nodes = list(nodes)
        out = super().configured(catalogue, policy, nodes, now)
        self._write(_configured(now, catalogue, policy, nodes, out))
        return out

    def _write(self, line: Line) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()


def _configured(
    at: float, catalogue: Catalogue, policy: Policy, nodes: list[str], out: list[Instruction]
) -> Configured:
    entries = [catalogue.entry(model) for model in catalogue.ids]
    return Configured(at, entries, dict(catalogue.aliases), policy, nodes, out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    given = parser.parse_args()
    RecordedConductor.path = given.record
    app.__dict__["Conductor"] = RecordedConductor
    config = load_gateway_config(given.config)
    return serve(config, lambda: load_gateway_config(given.config))


if __name__ == "__main__":
    sys.exit(main())

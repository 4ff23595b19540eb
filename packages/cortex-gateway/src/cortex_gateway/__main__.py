"""`python -m cortex_gateway [--config FILE]`: the gateway without the `cortex` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cortex_core.config.gateway import load_gateway_config
from cortex_core.config.loader import ConfigError
from cortex_gateway import hold_reloads, serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cortex_gateway", description=__doc__)
    parser.add_argument("--config", type=Path, metavar="FILE", help="cortex.toml")
    path = parser.parse_args().config
    hold_reloads()
    try:
        config = load_gateway_config(path)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return serve(config, lambda: load_gateway_config(path))


if __name__ == "__main__":
    sys.exit(main())

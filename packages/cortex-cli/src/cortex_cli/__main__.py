"""Entry point of `cortex` and of `python -m cortex_cli`."""

from __future__ import annotations

from cortex_cli.app import cortex


def main() -> None:
    cortex(prog_name="cortex")


if __name__ == "__main__":
    main()

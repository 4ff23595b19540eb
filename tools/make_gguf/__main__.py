"""`python -m tools.make_gguf OUT.gguf --preset toy`: make a random-weight GGUF."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

from tools.make_gguf.presets import PRESETS
from tools.make_gguf.shape import TYPES, ModelShape, ShapeError
from tools.make_gguf.write import make_gguf

_SIZES = ("layers", "width", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_gguf", description=__doc__)
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--preset", choices=PRESETS, help="start from these sizes")
    parser.add_argument("--arch", choices=ModelShape.ARCHITECTURES)
    for size in _SIZES:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, metavar="N")
    parser.add_argument(
        "--untied", dest="tied", action="store_false", default=None, help="an output matrix apart"
    )
    parser.add_argument("--type", choices=TYPES, default="F16", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="general.name; default: the file's name")
    options = vars(parser.parse_args(arguments))

    base = PRESETS[options["preset"]] if options["preset"] else ModelShape()
    given = {size: options[size] for size in ("arch", "tied", *_SIZES) if options[size] is not None}
    started = time.monotonic()
    try:
        sizes = {field.name for field in dataclasses.fields(base)}
        for name in given.keys() - sizes:
            raise ShapeError(f"{name}: a {base.arch} model has none")
        shape = dataclasses.replace(base, **given)
        out = make_gguf(
            options["out"],
            shape,
            file_type=options["type"],
            seed=options["seed"],
            name=options["name"],
        )
    except (ShapeError, OSError) as error:
        print(f"make_gguf: {error}", file=sys.stderr)
        return 1
    megabytes = out.stat().st_size / 1e6
    print(f"{out}: {megabytes:.1f} MB, {options['type']}, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

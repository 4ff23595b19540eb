"""Random-weight GGUF files of any shape, for tests and benchmarks. They run; they know nothing."""

from tools.make_gguf.shape import PRESETS, TYPES, Architecture, ModelShape, ShapeError
from tools.make_gguf.write import make_gguf

__all__ = ["PRESETS", "TYPES", "Architecture", "ModelShape", "ShapeError", "make_gguf"]

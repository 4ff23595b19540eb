"""Random-weight GGUF files of any shape, for tests and benchmarks. They run; they know nothing."""

from tools.make_gguf.embedding import BertShape, LastTokenShape
from tools.make_gguf.presets import PRESETS
from tools.make_gguf.recurrent import HybridShape, MambaShape, Mixer
from tools.make_gguf.shape import TYPES, ModelShape, Shape, ShapeError
from tools.make_gguf.sliding import SlidingShape
from tools.make_gguf.write import make_gguf

__all__ = [
    "PRESETS",
    "TYPES",
    "BertShape",
    "HybridShape",
    "LastTokenShape",
    "MambaShape",
    "Mixer",
    "ModelShape",
    "Shape",
    "ShapeError",
    "SlidingShape",
    "make_gguf",
]

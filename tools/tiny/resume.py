"""GGUF back to a checkpoint: ``python -m tools.tiny.resume --gguf FILE --out FOLDER``.

Writes the ``vocab.json`` and ``model.pt`` that training goes on from with ``--phase``. The weights
come back as Q8_0 left them, so a phase that starts here starts a rounding away from one that
follows its predecessor directly.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import gguf
import numpy as np
import torch

from tools.tiny.export import tensor_name
from tools.tiny.model import Shape, Tiny
from tools.tiny.tokenizer import Vocabulary


def vocabulary(reader: gguf.GGUFReader) -> Vocabulary:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    return Vocabulary(tokens, pairs)


def weights(reader: gguf.GGUFReader, model: Tiny) -> dict[str, torch.Tensor]:
    """Every parameter of ``model`` in float32; raises KeyError for one the file lacks."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = tensors[tensor_name(name)]
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        found[name] = torch.from_numpy(array.reshape(parameter.shape))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True, help="file to read")
    parser.add_argument("--out", type=Path, required=True, help="folder for vocab and checkpoint")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(arguments.gguf)
    learnt = vocabulary(reader)
    learnt.save(out / "vocab.json")
    model = Tiny(Shape(vocab=len(learnt.tokens)))
    record = {"shape": asdict(model.shape), "weights": weights(reader, model)}
    torch.save(record, out / "model.pt")


if __name__ == "__main__":
    main()

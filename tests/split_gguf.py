"""A GGUF in several files, as gguf-split makes them, from one that is whole."""

from __future__ import annotations

from pathlib import Path

import gguf

__all__ = ["split_gguf"]


def split_gguf(source: Path, folder: Path, tensors_each: int) -> list[Path]:
    """The parts in order, in `folder`, with at most so many tensors in each; the first holds what
    is known of the model."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / source.name, architecture, split_max_tensors=tensors_each)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        of_array = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], of_array)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{source.stem}-*-of-*.gguf"))

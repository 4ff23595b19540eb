"""Read the header of a GGUF file, trusting nothing in it.

A model file comes from anywhere. Every count is checked against the bytes that are really there
before it is believed, so a hostile header costs neither memory nor time; nothing but a GgufHeader
or a PreflightFailed comes out.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from cortex_core.errors import PreflightFailed

__all__ = [
    "GgufHeader",
    "OpenPart",
    "Readable",
    "Scalar",
    "Tensor",
    "parts_of",
    "read_header",
    "type_bytes",
]

Scalar = int | float | bool | str

# Far above any real model, far below what would hurt us.
_MOST_KEYS = 65_536
_MOST_TENSORS = 65_536
_MOST_KEY_BYTES = 65_535
_MOST_ELEMENTS = 1 << 24
_MOST_TEXT_BYTES = 1 << 20  # longer strings are skipped, not kept
_MOST_KEPT_BYTES = 32 << 20
_MOST_DIMENSIONS = 4
_MOST_KEPT_ELEMENTS = 1024  # an array of numbers per layer is kept, one per token is not
_MOST_PARTS = 1024
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_WINDOW_BYTES = 1 << 20

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]

# ggml type → (elements per block, bytes per block); from ggml.h. A type that is not here may be
# newer than this table: then only its offset is checked, and llama.cpp has the last word.
_BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
}


class Readable(Protocol):
    """As much of a file as is needed to read its beginning."""

    def seek(self, offset: int, /) -> object: ...

    def read(self, size: int, /) -> bytes: ...


OpenPart = Callable[[Path], AbstractContextManager[tuple[Readable, int]]]
"""Opens one file of a model, and says how many bytes it has."""


class Tensor(msgspec.Struct, frozen=True):
    """`shape` as GGUF writes it: a row's length first. `size_bytes` is 0 for an unknown type."""

    shape: tuple[int, ...]
    size_bytes: int


class GgufHeader(msgspec.Struct, frozen=True):
    """What the header says; of a model in several files, what all of them say together.
    `metadata` holds scalars and strings, `arrays` short arrays of numbers; of the others only the
    length is kept, in `array_lengths`. `tensor_bytes` counts the tensors of known type."""

    path: str
    version: int
    file_bytes: int
    architecture: str
    metadata: dict[str, Scalar]
    array_lengths: dict[str, int]
    tensor_count: int
    tensor_bytes: int
    parameters: int
    arrays: dict[str, tuple[Scalar, ...]] = {}
    tensors: dict[str, Tensor] = {}


def type_bytes(kind: str, elements: int) -> int:
    """Bytes of a row of `elements` in a KV type: "f16", "q8_0" or "q4_0"."""
    per_block, block_bytes = _BLOCKS[{"f16": 1, "q8_0": 8, "q4_0": 2}[kind]]
    return -(-elements // per_block) * block_bytes


def parts_of(path: Path) -> list[Path]:
    """The files of a model, named like name-00001-of-00003.gguf where there are several."""
    found = _PART.search(path.name)
    if not found:
        return [path]
    stem, count = path.name[: found.start()], int(found[2])
    if not 1 <= int(found[1]) <= count <= _MOST_PARTS:
        raise _failed(path, "gguf_corrupt", f"is part {found[1]} of {found[2]} by its name")
    return [path.with_name(f"{stem}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]


@contextmanager
def _open_file(path: Path) -> Iterator[tuple[Readable, int]]:
    # A FIFO or a device must not be opened: it could block, or do something.
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise _failed(path, "gguf_unreadable", "is a directory, not a file")
    if not stat.S_ISREG(mode):
        raise _failed(path, "gguf_unreadable", "is not a regular file")
    with path.open("rb", buffering=0) as file:
        yield file, os.fstat(file.fileno()).st_size


def read_header(path: Path, open_part: OpenPart = _open_file) -> GgufHeader:
    """Of a model in several files, `path` is the first. What `open_part` raises passes, but for
    OSError.
    Raises PreflightFailed (gguf_missing, gguf_corrupt, gguf_unsupported, gguf_unreadable)."""
    first, *others = parts_of(path)
    if first != path:
        raise _failed(path, "gguf_unsupported", f"is not the first part; load {first}")
    header = _read_part(path, open_part, is_first=True, is_only=not others)
    for other in others:
        part = _read_part(other, open_part, is_first=False, is_only=False)
        if twice := header.tensors.keys() & part.tensors.keys():
            raise _failed(other, "gguf_corrupt", f"the tensor {min(twice)!r} is in two parts")
        header = msgspec.structs.replace(
            header,
            file_bytes=header.file_bytes + part.file_bytes,
            tensor_count=header.tensor_count + part.tensor_count,
            tensor_bytes=header.tensor_bytes + part.tensor_bytes,
            parameters=header.parameters + part.parameters,
            tensors=header.tensors | part.tensors,
        )
    return header


def _read_part(path: Path, open_part: OpenPart, *, is_first: bool, is_only: bool) -> GgufHeader:
    try:
        with open_part(path) as (file, size):
            return _Parser(path, file, size).parse(is_first=is_first, is_only=is_only)
    except FileNotFoundError:
        raise _failed(path, "gguf_missing", "no such file") from None
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise _failed(path, "gguf_unreadable", problem) from None


def _failed(path: Path, kind: str, problem: str) -> PreflightFailed:
    return PreflightFailed(f"{path}: {problem}", kind=kind, param="model")


class _Parser:
    def __init__(self, path: Path, file: Readable, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._window = b""
        self._window_at = 0  # offset of the window in the file
        self._at = 0  # offset in the file
        self._kept_bytes = 0

    def parse(self, *, is_first: bool, is_only: bool) -> GgufHeader:
        """Only the first part must say what the model is; one of several may hold no tensors."""
        version, tensor_count, key_count = self._preamble()
        if is_only and tensor_count == 0:
            raise self._corrupt("it holds no tensors")
        metadata: dict[str, Scalar] = {}
        lengths: dict[str, int] = {}
        arrays: dict[str, tuple[Scalar, ...]] = {}
        for index in range(key_count):
            key = self._name(f"key {index}")
            if key in metadata or key in lengths:
                raise self._corrupt(f"the key {key!r} is given twice")
            kind = self._u32(f"type of {key!r}")
            if kind == _ARRAY:
                lengths[key], arrays[key] = self._array(key)
            elif kind == _STRING:
                metadata[key] = self._text(key)
            else:
                metadata[key] = self._scalar(kind, key)
        architecture = metadata.get("general.architecture")
        if not is_first:
            architecture = ""
        elif not isinstance(architecture, str) or not architecture:
            raise self._corrupt("the key 'general.architecture' is missing or is not a text")
        if metadata.get("general.type", "model") != "model":
            kind_text = metadata["general.type"]
            raise self._unsupported(f"holds a {kind_text!r}, which is not a model by itself")
        tensors, parameters = self._tensors(tensor_count, self._alignment(metadata))
        return GgufHeader(
            str(self._path),
            version,
            self._size,
            str(architecture),
            metadata,
            lengths,
            tensor_count,
            sum(tensor.size_bytes for tensor in tensors.values()),
            parameters,
            {key: values for key, values in arrays.items() if values},
            tensors,
        )

    # the parts

    def _preamble(self) -> tuple[int, int, int]:
        if self._size == 0:
            raise self._corrupt("the file is empty")
        magic = self._take(min(4, self._size), "magic")
        if magic != b"GGUF":
            raise self._corrupt(f"not a GGUF file: it begins with {magic!r}, not b'GGUF'")
        version = self._u32("version")
        if version != 0 and version & 0xFFFF == 0:
            raise self._unsupported("is big-endian; only little-endian GGUF is supported")
        if version not in (2, 3):
            raise self._unsupported(f"is GGUF version {version}; versions 2 and 3 are supported")
        tensor_count = self._u64("tensor count")
        key_count = self._u64("key count")
        # The least a tensor and a key can take: 8 + 1 + 4 + 8 + 4 + 8 and 8 + 1 + 4 + 1 bytes.
        if tensor_count > min(_MOST_TENSORS, self._left // 33):
            raise self._corrupt(f"it claims {tensor_count} tensors, more than it can hold")
        if key_count > min(_MOST_KEYS, self._left // 14):
            raise self._corrupt(f"it claims {key_count} keys, more than it can hold")
        return version, tensor_count, key_count

    def _alignment(self, metadata: dict[str, Scalar]) -> int:
        value = metadata.get("general.alignment", 32)
        is_sane = type(value) is int and 1 <= value <= 1 << 20 and value & (value - 1) == 0
        if not is_sane:
            raise self._corrupt(f"general.alignment is {value!r}, not a power of two")
        return int(value)

    def _tensors(self, count: int, alignment: int) -> tuple[dict[str, Tensor], int]:
        """All tensors, each checked to lie within the file, and how many elements they have."""
        offsets: list[int] = []
        tensors: dict[str, Tensor] = {}
        elements_of_all = 0
        for index in range(count):
            name = self._name(f"name of tensor {index}")
            if name in tensors:
                raise self._corrupt(f"the tensor {name!r} is given twice")
            dimensions = self._u32(f"dimensions of {name!r}")
            if dimensions > _MOST_DIMENSIONS:
                raise self._corrupt(f"the tensor {name!r} claims {dimensions} dimensions")
            shape = [self._u64(f"shape of {name!r}") for _ in range(dimensions)]
            kind = self._u32(f"type of {name!r}")
            offset = self._u64(f"offset of {name!r}")
            if offset % alignment:
                raise self._corrupt(f"the tensor {name!r} is not aligned to {alignment} bytes")
            elements = 1
            for length in shape:
                elements *= length
            per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
            if shape and shape[0] % per_block:
                raise self._corrupt(
                    f"a row of the tensor {name!r} has {shape[0]} elements, "
                    f"not a multiple of {per_block}"
                )
            tensors[name] = Tensor(tuple(shape), elements // per_block * block_bytes)
            offsets.append(offset)
            elements_of_all += elements
        start = -(-self._at // alignment) * alignment
        for (name, tensor), offset in zip(tensors.items(), offsets, strict=True):
            end = start + offset + tensor.size_bytes
            if end > self._size:
                raise self._corrupt(
                    f"truncated: the tensor {name!r} would end at byte {end}, "
                    f"but the file has {self._size}"
                )
        return tensors, elements_of_all

    # values

    def _name(self, what: str) -> str:
        size = self._u64(f"length of the {what}")
        if not 0 < size <= _MOST_KEY_BYTES:
            raise self._corrupt(f"the {what} claims to be {size} bytes long")
        try:
            return self._take(size, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._corrupt(f"the {what} is not UTF-8") from None

    def _text(self, key: str) -> str:
        size = self._u64(f"length of {key!r}")
        if size > _MOST_TEXT_BYTES:
            self._skip(size, key)
            return ""
        self._kept_bytes += size
        if self._kept_bytes > _MOST_KEPT_BYTES:
            raise self._corrupt(f"its texts exceed {_MOST_KEPT_BYTES} bytes at {key!r}")
        return self._take(size, key).decode("utf-8", "replace")

    def _scalar(self, kind: int, key: str) -> Scalar:
        form = _SCALARS.get(kind)
        if form is None:
            raise self._corrupt(f"the key {key!r} has the unknown type {kind}")
        return form.unpack(self._take(form.size, key))[0]

    def _array(self, key: str) -> tuple[int, tuple[Scalar, ...]]:
        """Its length, and its elements where they are few numbers."""
        kind = self._u32(f"element type of {key!r}")
        count = self._u64(f"length of {key!r}")
        if kind in _SCALARS:
            size = count * _SCALARS[kind].size
            if count <= _MOST_KEPT_ELEMENTS:
                kept = _SCALARS[kind].iter_unpack(self._take(size, key))
                return count, tuple(element for (element,) in kept)
            self._skip(size, key)
        elif kind == _STRING:
            if count > min(_MOST_ELEMENTS, self._left // 8):
                raise self._corrupt(f"{key!r} claims {count} elements, more than it can hold")
            self._skip_strings(count, key)
        else:
            raise self._corrupt(f"{key!r} is an array of the unknown type {kind}")
        return count, ()

    def _skip_strings(self, count: int, key: str) -> None:
        """A vocabulary has 10^5 strings; walk it in the window without a call for each."""
        unpack = _U64.unpack_from
        while count:
            self._fill(8, key)
            window, at = self._window, self._at - self._window_at
            last = len(window) - 8
            while count and at <= last:
                at += 8 + unpack(window, at)[0]
                count -= 1
            end = self._window_at + at
            if end > self._size:
                raise self._truncated(key)
            self._at = end

    # bytes

    @property
    def _left(self) -> int:
        return self._size - self._at

    def _u32(self, what: str) -> int:
        return _U32.unpack(self._take(4, what))[0]

    def _u64(self, what: str) -> int:
        return _U64.unpack(self._take(8, what))[0]

    def _take(self, size: int, what: str) -> bytes:
        self._fill(size, what)
        start = self._at - self._window_at
        self._at += size
        return self._window[start : start + size]

    def _skip(self, size: int, what: str) -> None:
        if size > self._left:
            raise self._truncated(what)
        self._at += size

    def _fill(self, size: int, what: str) -> None:
        """Have at least `size` bytes from `_at` in the window."""
        if size > self._left:
            raise self._truncated(what)
        start = self._at - self._window_at
        if start + size <= len(self._window):
            return
        self._file.seek(self._at)
        wanted = min(max(size, _WINDOW_BYTES), self._left)
        parts: list[bytes] = []
        while wanted > 0:
            part = self._file.read(wanted)
            if not part:  # the file has shrunk since it was opened
                raise self._truncated(what)
            parts.append(part)
            wanted -= len(part)
        self._window, self._window_at = b"".join(parts), self._at

    def _truncated(self, what: str) -> PreflightFailed:
        return self._corrupt(f"truncated: it ends within the {what}, at byte {self._size}")

    def _corrupt(self, problem: str) -> PreflightFailed:
        return _failed(self._path, "gguf_corrupt", problem)

    def _unsupported(self, problem: str) -> PreflightFailed:
        return _failed(self._path, "gguf_unsupported", problem)

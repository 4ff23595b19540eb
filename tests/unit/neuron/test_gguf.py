"""The GGUF header reader believes nothing that the file does not bear out."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import PreflightFailed
from neuron.models.gguf import GgufHeader, Tensor, read_header
from tests.unit.neuron.gguf_bytes import entry, floats, gguf, string, strings, tensor, text, u32

ARCHITECTURE = string("general.architecture", "test")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def refusal(file: Path, content: bytes) -> PreflightFailed:
    file.write_bytes(content)
    with pytest.raises(PreflightFailed) as caught:
        read_header(file)
    assert str(file) in caught.value.message
    assert caught.value.param == "model"
    return caught.value


def test_a_sound_file_is_read(file: Path):
    keys = [
        ARCHITECTURE,
        u32("test.block_count", 3),
        strings("tokenizer.ggml.tokens", [f"token {n}" for n in range(5000)]),
        floats("tokenizer.ggml.scores", [0.5] * 5000),
        string("tokenizer.chat_template", "{{ messages }}"),
        entry("test.flag", 7, b"\x01"),
    ]
    file.write_bytes(gguf(keys))
    header = read_header(file)
    assert header == GgufHeader(
        path=str(file),
        version=3,
        file_bytes=file.stat().st_size,
        architecture="test",
        metadata={
            "general.architecture": "test",
            "test.block_count": 3,
            "tokenizer.chat_template": "{{ messages }}",
            "test.flag": True,
        },
        array_lengths={"tokenizer.ggml.tokens": 5000, "tokenizer.ggml.scores": 5000},
        tensor_count=1,
        tensor_bytes=256,
        parameters=64,
        tensors={"token_embd.weight": Tensor((8, 8), 256)},
    )


def test_a_number_per_layer_is_kept(file: Path):
    file.write_bytes(gguf([ARCHITECTURE, floats("test.per_layer", [1.0, 0.5])]))
    header = read_header(file)
    assert header.arrays == {"test.per_layer": (1.0, 0.5)}
    assert header.array_lengths == {"test.per_layer": 2}


def part(folder: Path, number: int, content: bytes) -> Path:
    path = folder / f"big-{number:05}-of-00002.gguf"
    path.write_bytes(content)
    return path


def test_a_model_in_parts_is_one_model(tmp_path: Path):
    first = part(tmp_path, 1, gguf())
    second = part(tmp_path, 2, gguf([], [tensor("more", [8, 8], 0, 0)]))
    header = read_header(first)
    assert set(header.tensors) == {"token_embd.weight", "more"}
    assert (header.tensor_bytes, header.parameters) == (512, 128)
    assert header.file_bytes == first.stat().st_size + second.stat().st_size


def test_a_first_part_may_hold_no_tensors(tmp_path: Path):
    first = part(tmp_path, 1, gguf(tensors=[], data_bytes=0))
    part(tmp_path, 2, gguf([]))
    assert read_header(first).tensor_bytes == 256


def test_a_missing_part_is_named(tmp_path: Path):
    first = part(tmp_path, 1, gguf())
    with pytest.raises(PreflightFailed, match="big-00002-of-00002") as caught:
        read_header(first)
    assert caught.value.code == "gguf_missing"


def test_a_later_part_names_the_first(tmp_path: Path):
    second = part(tmp_path, 2, gguf([]))
    with pytest.raises(PreflightFailed, match=r"load .*big-00001-of-00002") as caught:
        read_header(second)
    assert caught.value.code == "gguf_unsupported"


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path):
    first = part(tmp_path, 1, gguf())
    part(tmp_path, 2, gguf([]))
    with pytest.raises(PreflightFailed, match=r"token_embd\.weight.*two parts"):
        read_header(first)


def test_a_name_of_an_impossible_part_is_refused(tmp_path: Path):
    path = tmp_path / "big-00003-of-00002.gguf"
    path.write_bytes(gguf())
    with pytest.raises(PreflightFailed, match="part 00003 of 00002"):
        read_header(path)


def test_quantised_tensors_are_counted_in_blocks(file: Path):
    q4 = tensor("a", [256, 2], 12, 0)
    q8 = tensor("b", [32], 8, 288)
    file.write_bytes(gguf(tensors=[q4, q8], data_bytes=288 + 34))
    header = read_header(file)
    assert (header.tensor_bytes, header.parameters) == (288 + 34, 544)


def test_a_vocabulary_larger_than_the_window_is_walked_quickly(file: Path):
    words = ["x" * 20] * 200_000
    file.write_bytes(gguf([ARCHITECTURE, strings("tokens", words), u32("after", 7)]))
    start = time.perf_counter()
    header = read_header(file)
    assert header.array_lengths == {"tokens": 200_000}
    assert header.metadata["after"] == 7
    assert time.perf_counter() - start < 2


def test_a_missing_file_is_gguf_missing(file: Path):
    with pytest.raises(PreflightFailed, match="no such file") as caught:
        read_header(file)
    assert caught.value.code == "gguf_missing"


def test_a_folder_is_gguf_unreadable(tmp_path: Path):
    with pytest.raises(PreflightFailed, match="is a directory") as caught:
        read_header(tmp_path)
    assert caught.value.code == "gguf_unreadable"


def test_a_fifo_is_refused_without_opening_it(file: Path):
    os.mkfifo(file)
    with pytest.raises(PreflightFailed, match="not a regular file") as caught:
        read_header(file)
    assert caught.value.code == "gguf_unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_gguf_unreadable(file: Path):
    file.write_bytes(gguf())
    file.chmod(0)
    with pytest.raises(PreflightFailed, match="Permission denied") as caught:
        read_header(file)
    assert caught.value.code == "gguf_unreadable"


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        (1, "version 1"),
        (4, "version 4"),
        (0, "version 0"),
        (3 << 24, "big-endian"),
    ],
)
def test_other_versions_are_gguf_unsupported(file: Path, version: int, problem: str):
    error = refusal(file, gguf(version=version))
    assert error.code == "gguf_unsupported"
    assert problem in error.message


def test_an_adapter_is_gguf_unsupported(file: Path):
    error = refusal(file, gguf([ARCHITECTURE, string("general.type", "adapter")]))
    assert error.code == "gguf_unsupported"
    assert "'adapter'" in error.message


CORRUPT = {
    "empty": (b"", "the file is empty"),
    "short magic": (b"GG", "not a GGUF file"),
    "safetensors": (b"\x10\0\0\0\0\0\0\0{}", "not a GGUF file"),
    "only a magic": (b"GGUF", "truncated"),
    "absurd key count": (gguf(key_count=2**63), "claims 9223372036854775808 keys"),
    "absurd tensor count": (gguf(tensor_count=2**40), "claims 1099511627776 tensors"),
    "no tensors": (gguf(tensors=[]), "holds no tensors"),
    "no architecture": (gguf([u32("a", 1)]), "'general.architecture' is missing"),
    "architecture is a number": (gguf([u32("general.architecture", 1)]), "is missing or is not"),
    "key twice": (gguf([ARCHITECTURE, ARCHITECTURE]), "given twice"),
    "key without a name": (gguf([ARCHITECTURE, text("") + bytes(8)]), "0 bytes long"),
    "key not UTF-8": (gguf([ARCHITECTURE, text(b"\xff") + bytes(8)]), "not UTF-8"),
    "unknown type": (gguf([ARCHITECTURE, entry("k", 77, b"")]), "unknown type 77"),
    "string beyond the end": (
        gguf([ARCHITECTURE, entry("k", 8, struct.pack("<Q", 2**62))]),
        "truncated: it ends within the k",
    ),
    "array beyond the end": (
        gguf([ARCHITECTURE, entry("k", 9, struct.pack("<IQ", 4, 2**61))]),
        "truncated",
    ),
    "absurd strings": (
        gguf([ARCHITECTURE, entry("k", 9, struct.pack("<IQ", 8, 2**61))]),
        "more than it can hold",
    ),
    "array of arrays": (
        gguf([ARCHITECTURE, entry("k", 9, struct.pack("<IQ", 9, 1))]),
        "array of the unknown type 9",
    ),
    "string in an array beyond the end": (
        gguf([ARCHITECTURE, entry("k", 9, struct.pack("<IQQ", 8, 1, 2**60))]),
        "truncated",
    ),
    "odd alignment": (gguf([ARCHITECTURE, u32("general.alignment", 33)]), "power of two"),
    "zero alignment": (gguf([ARCHITECTURE, u32("general.alignment", 0)]), "power of two"),
    "tensor twice": (
        gguf(tensors=[tensor("a", [8], 0, 0), tensor("a", [8], 0, 32)]),
        "the tensor 'a' is given twice",
    ),
    "five dimensions": (gguf(tensors=[tensor("a", [1] * 5, 0, 0)]), "5 dimensions"),
    "misaligned tensor": (gguf(tensors=[tensor("a", [8], 0, 3)]), "not aligned"),
    "half a block": (gguf(tensors=[tensor("a", [33], 8, 0)]), "not a multiple of 32"),
    "data cut off": (gguf(data_bytes=255), "would end at byte"),
    "data missing": (gguf(data_bytes=0), "truncated"),
    "huge tensor": (gguf(tensors=[tensor("a", [2**40, 2**40], 0, 0)]), "truncated"),
    "far offset of an unknown type": (gguf(tensors=[tensor("a", [8], 99, 2**40)]), "truncated"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_a_wrong_file_is_gguf_corrupt_and_says_where(file: Path, case: str):
    content, problem = CORRUPT[case]
    error = refusal(file, content)
    assert error.code == "gguf_corrupt"
    assert problem in error.message


def test_a_tensor_of_a_newer_type_is_left_to_llama_cpp(file: Path):
    file.write_bytes(gguf(tensors=[tensor("a", [8], 99, 0)]))
    assert read_header(file).tensor_bytes == 0


def test_a_hostile_header_costs_no_memory(file: Path):
    # 200 MB of zeros read as strings of length 0, which is what a sparse file gives for free.
    file.write_bytes(gguf([ARCHITECTURE, entry("k", 9, struct.pack("<IQ", 8, 1 << 24))]))
    with file.open("r+b") as f:
        f.truncate(200 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(PreflightFailed):
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


SOUND = gguf(
    [
        ARCHITECTURE,
        u32("test.block_count", 3),
        strings("tokens", ["a", "bc", "def"]),
        floats("scores", [1.0, 2.0]),
    ],
    [tensor("a", [8, 8], 0, 0), tensor("b", [32], 8, 256)],
    data_bytes=320,
)


@given(st.data())
def test_whatever_happens_to_a_file_it_is_read_or_refused(tmp_path_factory, data: st.DataObject):
    content = bytearray(SOUND)
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[at] = value
    size = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    file = tmp_path_factory.getbasetemp() / "flipped.gguf"
    file.write_bytes(content[:size])
    try:
        header = read_header(file)
    except PreflightFailed:
        return
    assert header.tensor_count > 0


@given(st.integers(0, len(SOUND) - 1))
def test_every_truncation_is_refused(tmp_path_factory, size: int):
    file = tmp_path_factory.getbasetemp() / "cut.gguf"
    file.write_bytes(SOUND[:size])
    # The last bytes are padding: no tensor reaches into them.
    if size >= len(SOUND) - 30:
        read_header(file)
    else:
        with pytest.raises(PreflightFailed):
            read_header(file)

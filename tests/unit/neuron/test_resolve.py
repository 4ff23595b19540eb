"""From an id to a file, and never to a file the operator did not allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import CortexError, Forbidden, InvalidRequest, ModelNotFound
from cortex_core.errors import PreflightFailed as Refused
from neuron.models.resolve import TINY, Resolver


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "qwen").mkdir(parents=True)
    (folder / "qwen" / "small-Q4_K_M.gguf").touch()
    (folder / "notes.txt").touch()
    (tmp_path / "secret.gguf").touch()
    return folder


@pytest.fixture
def resolver(folder: Path) -> Resolver:
    return Resolver([str(folder)])


def test_the_embedded_model_is_a_file_of_this_package():
    path = Resolver().resolve(TINY)
    assert isinstance(path, Path)
    assert path.name == "tiny.gguf"
    assert path.parent.name == "assets"


def test_a_path_below_an_allowed_folder(resolver: Resolver, folder: Path):
    path = folder / "qwen" / "small-Q4_K_M.gguf"
    assert resolver.resolve("qwen/small-Q4_K_M.gguf") == path
    assert resolver.resolve(str(path)) == path


def test_the_second_folder_is_looked_in_too(resolver: Resolver, folder: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.gguf").touch()
    assert Resolver([str(folder), str(other)]).resolve("b.gguf") == other / "b.gguf"


@pytest.mark.parametrize("way_out", ["../secret.gguf", "qwen/../../secret.gguf", "{}/secret.gguf"])
def test_a_path_out_of_the_folder_is_forbidden(
    resolver: Resolver, folder: Path, tmp_path: Path, way_out: str
):
    with pytest.raises(Forbidden, match=r"models\.local") as caught:
        resolver.resolve(way_out.format(tmp_path))
    assert str(folder) in caught.value.message


def test_a_symlink_is_no_way_out(resolver: Resolver, folder: Path, tmp_path: Path):
    (folder / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    (folder / "up").symlink_to(tmp_path)
    for name in ("link.gguf", "up/secret.gguf", str(folder / "link.gguf")):
        with pytest.raises(Forbidden):
            resolver.resolve(name)


def test_a_symlink_within_the_folder_is_followed(resolver: Resolver, folder: Path):
    (folder / "alias.gguf").symlink_to(folder / "qwen" / "small-Q4_K_M.gguf")
    assert resolver.resolve("alias.gguf") == folder / "qwen" / "small-Q4_K_M.gguf"


def test_a_sibling_with_the_same_beginning_is_outside(resolver: Resolver, folder: Path):
    twin = folder.with_name("models-private")
    twin.mkdir()
    (twin / "a.gguf").touch()
    with pytest.raises(Forbidden):
        resolver.resolve(str(twin / "a.gguf"))


def test_whether_a_forbidden_file_exists_is_not_told(resolver: Resolver, tmp_path: Path):
    messages = []
    for name in ("secret.gguf", "absent.gguf"):
        with pytest.raises(Forbidden) as caught:
            resolver.resolve(str(tmp_path / name))
        messages.append(caught.value.message.replace(name, "X"))
    assert messages[0] == messages[1]


def test_a_file_the_operator_named_is_allowed_anywhere(tmp_path: Path):
    file = tmp_path / "mine.gguf"
    file.touch()
    assert Resolver(named=[str(file), TINY]).resolve(str(file)) == file


def test_a_missing_file_names_where_it_was_looked_for(resolver: Resolver, folder: Path):
    with pytest.raises(Refused, match="no such file below") as caught:
        resolver.resolve("qwen/small-Q4_KM.gguf")
    assert caught.value.code == "gguf_missing"
    assert str(folder) in caught.value.message
    assert "did you mean 'qwen/small-Q4_K_M.gguf'?" in caught.value.message


def test_a_name_without_its_folder_is_helped(resolver: Resolver):
    with pytest.raises(ModelNotFound, match=r"did you mean 'qwen/small-Q4_K_M\.gguf'"):
        resolver.resolve("small")


def test_an_unknown_id_says_what_can_be_loaded(resolver: Resolver):
    with pytest.raises(ModelNotFound) as caught:
        resolver.resolve("cortex/tinny")
    assert "did you mean 'cortex/tiny'?" in caught.value.message
    assert "GGUF files" in caught.value.message


@pytest.mark.parametrize("model", ["unsloth/Qwen3-0.6B-GGUF", "unsloth/Qwen3-0.6B-GGUF:Q4_K_M"])
def test_a_hub_id_is_told_that_this_node_has_no_hub(resolver: Resolver, model: str):
    with pytest.raises(ModelNotFound, match=r"no hub to ask \(models\.sources\)"):
        resolver.resolve(model)


@pytest.mark.parametrize("model", ["", "a\0b", "x" * 5000])
def test_what_is_no_path_at_all_is_an_invalid_request(resolver: Resolver, model: str):
    with pytest.raises(InvalidRequest):
        resolver.resolve(model)


def test_a_loop_of_symlinks_is_refused(resolver: Resolver, folder: Path):
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(CortexError):
        resolver.resolve("loop/a.gguf")
    with pytest.raises(CortexError):
        resolver.resolve(os.path.join(folder, "loop"))


@given(st.text(max_size=300))
def test_any_text_resolves_or_is_refused_with_a_typed_error(model: str):
    try:
        path = Resolver(["/proc/self/fd"]).resolve(model)
    except CortexError:
        return
    if isinstance(path, Path) and model != TINY:
        assert path.is_relative_to(Path("/proc/self/fd").resolve())

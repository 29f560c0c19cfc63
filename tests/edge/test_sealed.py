"""A folder holds what its manifest names, as regular files of its own, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from edge.build import open_build
from edge.model import EdgeModel
from edge.sealed import safe_name
from genrecal.core.errors import BuildError
from genrecal.core.manifest import file_entry
from tests.edge.mutations import PATHS


@pytest.fixture
def copy(build_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(build_folder, tmp_path / "copy")


def refusal(folder: Path) -> str:
    with pytest.raises(BuildError) as caught:
        open_build(folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


def alter(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", PATHS)
def test_names_that_lead_elsewhere(copy: Path, name: str) -> None:
    assert (
        not safe_name(name)
        or name in ("folder", "pipe", "link.json", "manifest.sig", "a" * 300)
        or (name.lower() in ("manifest.json", "config.json", "onnx/embed_tokens.onnx"))
    )
    alter(copy, lambda manifest: manifest["files"].update({name: file_entry(copy / "config.json")}))
    line = refusal(copy)
    assert "its manifest.json names" in line or "is missing" in line or "is not valid JSON" in line


@pytest.mark.parametrize(
    "name",
    ["config.json", "onnx/decoder_model_merged_q4f16.onnx", "onnx/a.onnx_data", "README.md", "a-b+c_1"],
)
def test_names_as_exporters_write_them(name: str) -> None:
    assert safe_name(name)


@pytest.mark.parametrize("name", ["config.json", "onnx/embed_tokens.onnx", "chat_template.jinja"])
@pytest.mark.parametrize("same", [True, False])
def test_a_link_in_the_place_of_a_file(copy: Path, tmp_path: Path, name: str, same: bool) -> None:
    """Also one to the right content: what it leads to can change at any time."""
    shutil.copy(copy / name, tmp_path / "elsewhere")
    (copy / name).unlink()
    (copy / name).symlink_to(tmp_path / "elsewhere" if same else Path("/dev/zero"))
    assert f"'{name}' is a link, not a regular file" in refusal(copy)


def test_a_folder_that_is_a_link(copy: Path, tmp_path: Path) -> None:
    (copy / "onnx").rename(tmp_path / "onnx")
    (copy / "onnx").symlink_to(tmp_path / "onnx")
    assert "holds 'onnx', which its manifest.json does not name" in refusal(copy)
    (copy / "onnx").unlink()
    (copy / "onnx").write_text("")
    assert "holds 'onnx', which its manifest.json does not name" in refusal(copy)


def test_pipes_sockets_and_folders(copy: Path) -> None:
    """None of them is opened: a pipe would be waited for."""
    (copy / "config.json").unlink()
    os.mkfifo(copy / "config.json")
    assert "'config.json' is no regular file" in refusal(copy)
    (copy / "config.json").unlink()
    before = os.getcwd()
    os.chdir(copy)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("config.json")
            assert "'config.json' is no regular file" in refusal(copy)
    finally:
        os.chdir(before)
    (copy / "config.json").unlink()
    (copy / "config.json").mkdir()
    assert "'config.json' is no regular file" in refusal(copy)


def test_the_manifest_itself_is_a_regular_file(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").rename(tmp_path / "manifest.json")
    (copy / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert "is a link, not a regular file" in refusal(copy)
    (copy / "manifest.json").unlink()
    os.mkfifo(copy / "manifest.json")
    assert "is no regular file" in refusal(copy)


@pytest.mark.parametrize("name", ["extra.py", ".hidden", "onnx/extra.onnx_data", "Manifest.json", "\x1b[2J"])
def test_a_file_that_nobody_named(copy: Path, name: str) -> None:
    (copy / name).write_text("")
    assert "which its manifest.json does not name. Take it out" in refusal(copy)


@pytest.mark.parametrize("size", [-1, True, 1.0, "1400", None, 2**60, 10**40])
def test_sizes_that_are_none(copy: Path, size: Any) -> None:
    alter(copy, lambda manifest: manifest["files"]["config.json"].update(bytes=size))
    assert "gives 'config.json' no size" in refusal(copy) or "a number of 41 digits" in refusal(copy)


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, None, 0, ["0" * 64]])
def test_digests_that_are_none(copy: Path, digest: Any) -> None:
    alter(copy, lambda manifest: manifest["files"]["config.json"].update(sha256=digest))
    assert "gives 'config.json' no SHA-256" in refusal(copy)


def test_too_many_files_and_too_deep(copy: Path) -> None:
    entry = file_entry(copy / "config.json")
    alter(copy, lambda manifest: manifest["files"].update({f"f{n}": entry for n in range(5000)}))
    assert "files, at most 4,096" in refusal(copy)


def test_a_settings_file_of_many_megabytes(copy: Path) -> None:
    with (copy / "config.json").open("ab") as stream:
        stream.truncate(17 * 2**20)
    alter(copy, lambda manifest: manifest["files"].update({"config.json": file_entry(copy / "config.json")}))
    assert "has 17,825,792 bytes, more than 16,777,216" in refusal(copy)


def test_a_build_behind_a_link_opens_where_it_led(build_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(build_folder)
    build = open_build(tmp_path / "current")
    (tmp_path / "current").unlink()
    assert build.folder == build_folder and build.decoder.is_file()


@pytest.mark.parametrize("how", ["written", "replaced", "moved away and back", "gone"])
def test_a_file_that_changes_between_check_and_use(copy: Path, how: str) -> None:
    """Between hashing and loading: the same size and the same time of writing do not hide it."""
    build = open_build(copy)
    path = copy / "onnx/embed_tokens.onnx"
    status, content = path.stat(), path.read_bytes()
    if how == "written":
        path.write_bytes(content[:-1] + b"\1")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "replaced":
        (copy / "other").write_bytes(content)
        (copy / "other").replace(path)
    elif how == "moved away and back":
        path.rename(copy / "aside")
        (copy / "aside").rename(path)
    else:
        path.unlink()
    with pytest.raises(BuildError, match=r"'onnx/embed_tokens.onnx' was changed while the build was opened"):
        build.sealed.require_unchanged()


def test_the_model_looks_again_after_loading(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edge.session

    load = edge.session._load

    def swap(path: Path, *arguments: Any) -> Any:
        session = load(path, *arguments)
        os.utime(copy / "tokenizer.json")  # as whoever writes to it would
        return session

    monkeypatch.setattr(edge.session, "_load", swap)
    with pytest.raises(BuildError, match=r"'tokenizer.json' was changed while the build was opened"):
        EdgeModel.open(copy, threads=1)

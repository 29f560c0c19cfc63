"""Atomic files and folders, and manifests that notice a flipped byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genrecal.core.errors import GenrecalError
from genrecal.core.files import atomic_folder, read_json, sha256_file, write_bytes, write_text
from genrecal.core.manifest import NAME, read_manifest, verify_manifest, write_manifest


class Cut(Exception):
    """Stands for whatever ends a write half-way."""


def entries(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_write_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "one")
    write_text(target, "zwei — zwei")
    assert target.read_text(encoding="utf-8") == "zwei — zwei" and entries(target.parent) == {"a.txt"}
    assert target.stat().st_mode & 0o777 == 0o644


def test_a_cut_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    write_bytes(target, b"old")

    def cut(descriptor: int) -> None:
        raise Cut

    monkeypatch.setattr("genrecal.core.files.os.fsync", cut)
    with pytest.raises(Cut):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old" and entries(tmp_path) == {"a.txt"}


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_bad_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(GenrecalError, match="is not valid JSON") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_no_json_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(GenrecalError, match="no such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(GenrecalError, match="is a folder"):
        read_json(tmp_path)


def fill(folder: Path, text: str) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a.txt").write_text(text)


def test_a_folder_appears_whole_and_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "build"
    with atomic_folder(target) as temporary:
        (temporary / "old.txt").write_text("one")
        assert not target.exists()
    fill(target, "two")
    assert entries(tmp_path) == {"build", "build/sub", "build/sub/a.txt"}
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("exists", [True, False])
def test_an_exception_leaves_the_old_folder(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "build"
    if exists:
        fill(target, "old")
    before = entries(tmp_path)
    with pytest.raises(Cut), atomic_folder(target) as temporary:
        (temporary / "half.txt").write_text("new")
        raise Cut
    assert entries(tmp_path) == before
    assert not exists or (target / "sub" / "a.txt").read_text() == "old"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "build"
    fill(target, "content of some length")
    (target / "b.bin").write_bytes(bytes(range(256)))
    write_manifest(target, kind="build", source="a run")
    return target


def test_a_manifest_names_every_file(folder: Path) -> None:
    manifest = verify_manifest(folder, kind="build")
    assert set(manifest["files"]) == {"b.bin", "sub/a.txt"} and manifest["source"] == "a run"
    assert manifest["files"]["b.bin"] == {"sha256": sha256_file(folder / "b.bin"), "bytes": 256}
    assert manifest["versions"]["numpy"]


@pytest.mark.parametrize("name", ["b.bin", "sub/a.txt"])
@pytest.mark.parametrize("position", [0, 11, -1])
def test_a_flipped_bit_is_found(folder: Path, name: str, position: int) -> None:
    data = bytearray((folder / name).read_bytes())
    data[position] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(GenrecalError, match=f"file '{name}' differs from its SHA-256") as caught:
        verify_manifest(folder, kind="build")
    assert "\n" not in str(caught.value)


def test_missing_and_shortened_files_are_found(folder: Path) -> None:
    (folder / "b.bin").write_bytes(bytes(range(255)))
    with pytest.raises(GenrecalError, match=r"'b\.bin' differs"):
        verify_manifest(folder, kind="build")
    (folder / "b.bin").unlink()
    with pytest.raises(GenrecalError, match=r"'b\.bin' is missing"):
        verify_manifest(folder, kind="build")


def test_wrong_folders_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GenrecalError, match=f"is no build folder: it has no {NAME}"):
        read_manifest(tmp_path, kind="build")
    with pytest.raises(GenrecalError, match="is a folder of kind 'build', not 'run'"):
        read_manifest(folder, kind="run")
    content = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(GenrecalError, match="has manifest format 99"):
        read_manifest(folder, kind="build")
    (folder / NAME).write_text("[1]")
    with pytest.raises(GenrecalError, match="damaged"):
        read_manifest(folder, kind="build")

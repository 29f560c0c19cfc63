"""Shards and their index: what is written is found, what a kill cut off or a hand altered is not."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from genrecal.core.errors import TrainError
from genrecal.core.types import Sample, Turn
from genrecal.train.teacher_store import (
    SHARDS,
    Record,
    ShardWriter,
    TeacherStore,
    drop_unfinished,
    finished_shards,
    note_verified,
    question_key,
    sample_key,
    verify_shards,
    write_index,
)

WIDTH = 64
KEYS = [2**64 - 1, 0, 2**63, 17, 2**63 - 1, 5]  # unsigned: the largest ones too


def features(key: int) -> torch.Tensor:
    """[N, L, D], another length for each key."""
    return torch.randn(
        1 + KEYS.index(key), 2, WIDTH, generator=torch.Generator().manual_seed(KEYS.index(key))
    )


def record(key: int) -> Record:
    return Record(key=key, question_length=100 + KEYS.index(key), inputs=2**64 - 2 - KEYS.index(key))


def written(cache: Path, *, kind: str = "fp32", shard_bytes: int = 4000, ranks: int = 2) -> TeacherStore:
    """Several shards by several ranks."""
    for rank in range(ranks):
        writer = ShardWriter(cache, kind=kind, rank=rank, shard_bytes=shard_bytes)
        for key in KEYS[rank::ranks]:
            writer.add(record(key), features(key))
        writer.flush()
    write_index(cache)
    return TeacherStore(cache)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_what_is_written_is_found(tmp_path: Path, kind: str) -> None:
    store = written(tmp_path, kind=kind)
    assert len(finished_shards(tmp_path)) >= 2 and len(store) == len(KEYS)
    for key in KEYS:
        assert store.record(key) == record(key)
        read = store.read(key)
        assert read is not None and (read.scales is not None) == (kind == "int8")
        tolerance = {"fp32": 0.0, "bf16": 0.02, "int8": 0.02}[kind]
        assert torch.allclose(read.unpacked(torch.float32), features(key), atol=tolerance, rtol=tolerance)
    assert store.read(3) is None and store.record(2**64 - 2) is None
    asked = np.array([*KEYS, 3, 2**64 - 2], np.uint64)
    assert store.holds(asked).tolist() == [True] * len(KEYS) + [False] * 2


def test_an_empty_store_holds_nothing(tmp_path: Path) -> None:
    write_index(tmp_path)
    store = TeacherStore(tmp_path)
    assert len(store) == 0 and store.read(5) is None
    assert not store.holds(np.array([5], np.uint64)).any()


def test_a_store_reads_in_worker_processes(tmp_path: Path) -> None:
    store = written(tmp_path)
    store.read(17)  # what is open here is opened again there
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.read(17).values, store.read(17).values)
    loader = DataLoader(KEYS, batch_size=None, collate_fn=store.read, num_workers=1)
    for key, read in zip(KEYS, loader, strict=True):
        assert torch.equal(read.values, features(key))


def test_keys_are_of_what_is_asked_and_answered() -> None:
    turns = (Turn(role="user", text="q"), Turn(role="assistant", text="a"))
    one = Sample(id="1", images=(Path("x.png"),), turns=turns, domain="knowledge", source="s")
    other = Sample(id="2", images=(Path("x.png"),), turns=turns, domain="science_math", source="t")
    assert sample_key(one) == sample_key(other)
    changed = [
        Sample(id="1", images=(Path("y.png"),), turns=turns, domain="knowledge", source="s"),
        Sample(
            id="1",
            images=one.images,
            turns=(turns[0], Turn(role="assistant", text="b")),
            domain="knowledge",
            source="s",
        ),
        Sample(
            id="1",
            images=one.images,
            turns=(Turn(role="user", text="r"), turns[1]),
            domain="knowledge",
            source="s",
        ),
    ]
    keys = {sample_key(sample) for sample in (one, *changed)}
    assert len(keys | {question_key(key) for key in keys}) == 8
    assert question_key(np.array([5], np.uint64)).tolist() == [question_key(5)]


def test_a_shard_that_a_kill_cut_off_is_dropped_and_the_next_one_takes_its_name(tmp_path: Path) -> None:
    written(tmp_path, ranks=1)
    names = finished_shards(tmp_path)
    (tmp_path / SHARDS / f"{names[-1]}.json").unlink()  # killed between the two files
    (tmp_path / SHARDS / ".0000-000009.safetensors.part").write_bytes(b"half")
    drop_unfinished(tmp_path)
    assert sorted(path.stem for path in (tmp_path / SHARDS).iterdir()) == sorted(2 * names[:-1])
    write_index(tmp_path)
    store = TeacherStore(tmp_path)
    lost = [key for key in KEYS if store.record(key) is None]
    assert lost and len(store) == len(KEYS) - len(lost)
    writer = ShardWriter(tmp_path, kind="fp32", rank=0, shard_bytes=4000)
    for key in lost:
        writer.add(record(key), features(key))
    writer.flush()
    write_index(tmp_path)
    assert finished_shards(tmp_path) == names
    assert all(torch.equal(TeacherStore(tmp_path).read(key).values, features(key)) for key in KEYS)


def test_the_first_of_two_equal_records_counts(tmp_path: Path) -> None:
    for rank in range(2):
        writer = ShardWriter(tmp_path, kind="fp32", rank=rank, shard_bytes=4000)
        writer.add(record(17), features(17) + rank)
        writer.flush()
    write_index(tmp_path)
    store = TeacherStore(tmp_path)
    assert len(store) == 1 and torch.equal(store.read(17).values, features(17))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_an_altered_shard_is_refused_and_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path)
    names = finished_shards(tmp_path)
    note_verified(tmp_path, verify_shards(tmp_path, names))
    shard = tmp_path / SHARDS / f"{names[1]}.safetensors"
    content = shard.read_bytes()
    if damage == "flip":
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        shard.write_bytes(content[:-1])
    else:
        shard.unlink()
    with pytest.raises(TrainError, match=rf"{names[1]}\.safetensors.*Delete both files"):
        verify_shards(tmp_path, names)


def test_a_verified_shard_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    names = finished_shards(tmp_path)
    note_verified(tmp_path, verify_shards(tmp_path, names))
    hashed: list[Path] = []
    monkeypatch.setattr("genrecal.train.teacher_store.sha256_file", lambda path: hashed.append(path) or "")
    verify_shards(tmp_path, names)
    assert not hashed
    (tmp_path / SHARDS / f"{names[0]}.safetensors").touch()
    with pytest.raises(TrainError, match=names[0]):  # of another time: hashed, here to something else
        verify_shards(tmp_path, names)
    assert len(hashed) == 1


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    written(tmp_path)
    before = (tmp_path / "index.safetensors").read_bytes()
    (tmp_path / "index.safetensors").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    write_index(tmp_path)
    assert (tmp_path / "index.safetensors").read_bytes() == before


def test_a_full_disk_is_one_clear_error_and_loses_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    store = written(tmp_path)
    writer = ShardWriter(tmp_path, kind="fp32", rank=0, shard_bytes=4000)
    writer.add(Record(key=1, question_length=1, inputs=1), features(0))
    monkeypatch.setattr("genrecal.train.teacher_store.save_file", full)
    with pytest.raises(TrainError, match=r"cannot be written .*No space left"):
        writer.flush()
    verify_shards(tmp_path, finished_shards(tmp_path))
    assert all(store.read(key) is not None for key in KEYS)

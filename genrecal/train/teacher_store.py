"""A teacher's features on disk: shards that ranks write as they come, and one index over all of them.

    CACHE/shards/0003-000012.safetensors   rank 3's twelfth: features of some hundred samples, and whose
    CACHE/shards/0003-000012.json          its SHA-256 and size; written after it
    CACHE/index.safetensors, index.json    keys, sorted, with their places; derived from the shards
    CACHE/verified.json                    the sizes and times of shards whose SHA-256 was compared

A shard without its JSON file is one that a kill cut off: it is deleted, and its samples are computed again.
The index is one file, replaced whole, while other runs read the one before. It is memory-mapped and a read
takes its sample's slice of a shard alone, so that millions of samples cost a process some open files.

A record is a key with N positions; `sample_key` says whose. Shapes as in data/features.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from genrecal.core.errors import TrainError
from genrecal.core.files import read_json, sha256_file, sync_file, sync_folder, write_json
from genrecal.core.manifest import file_entry
from genrecal.core.types import Sample
from genrecal.data.features import FeatureType, Packed, pack
from genrecal.train.writing import writing

SHARDS, VERIFIED = "shards", "verified.json"
INDEX, INDEX_FACTS = "index.safetensors", "index.json"
OPEN_SHARDS = 512  # in a process; a cache of the paper's size has some ten thousand
MASK = 2**64 - 1
# Where a record lies: its shard, the first of its positions there, and how many there are.
PLACE = np.dtype(
    [("shard", "<u4"), ("first", "<u4"), ("positions", "<u4"), ("question", "<u4"), ("inputs", "<u8")]
)


def sample_key(sample: Sample) -> int:
    """64 bits of what is asked and what is answered: the images' names and all turns.

    The record of the answer's features lies under it, that of the question's under `question_key` of it.
    """
    read = [str(image) for image in sample.images] + [turn.text for turn in sample.turns]
    return int.from_bytes(hashlib.sha256(json.dumps(read).encode()).digest()[:8], "little")


def question_key(key: Any) -> Any:
    """The key of a sample's question features: that of its answer features with every bit flipped."""
    return key ^ MASK if isinstance(key, int) else ~key


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a record beside its features."""

    key: int
    question_length: int
    inputs: int  # 64 bits of the tokens and pixels that the teacher read (recording.py)


class ShardWriter:
    """Gathers records in memory and writes them as shards of about `shard_bytes`; one for each rank."""

    def __init__(self, cache: Path, *, kind: FeatureType, rank: int, shard_bytes: int) -> None:
        self.folder, self.kind, self.rank, self.shard_bytes = cache / SHARDS, kind, rank, shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        taken = [int(path.stem.partition("-")[2]) for path in self.folder.glob(f"{rank:04d}-*.json")]
        self._next = max(taken, default=-1) + 1
        self._records: list[Record] = []
        self._packed: list[Packed] = []
        self._bytes = 0

    def add(self, record: Record, z_NLD: torch.Tensor) -> None:
        """Take a record; it is on disk when `flush` returns, or when a shard is full.

        Raises:
            TrainError: the shard cannot be written.
        """
        packed = pack(z_NLD, self.kind).to(torch.device("cpu"))
        self._records.append(record)
        self._packed.append(packed)
        self._bytes += sum(part.nbytes for part in (packed.values, packed.scales) if part is not None)
        if self._bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory as a shard."""
        if not self._records:
            return
        name = f"{self.rank:04d}-{self._next:06d}"
        table = {
            "keys": [record.key for record in self._records],
            "inputs": [record.inputs for record in self._records],
            "positions": [len(packed.values) for packed in self._packed],
            "question_lengths": [record.question_length for record in self._records],
        }
        # Unsigned numbers of 64 bits under the name of signed ones, which every reader of safetensors knows.
        tensors = {
            column: torch.from_numpy(np.array(entries, np.uint64).view(np.int64))
            for column, entries in table.items()
        }
        tensors["values"] = torch.cat([packed.values for packed in self._packed])
        scales = [packed.scales for packed in self._packed if packed.scales is not None]
        if scales:
            tensors["scales"] = torch.cat(scales)
        shard = self.folder / f"{name}.safetensors"
        with writing(shard):
            _save(tensors, shard)
            write_json(shard.with_suffix(".json"), file_entry(shard))
        self._next += 1
        self._records, self._packed, self._bytes = [], [], 0


def finished_shards(cache: Path) -> list[str]:
    """The names of the shards that were written whole, in order."""
    return sorted(path.stem for path in (cache / SHARDS).glob("*.json"))


def drop_unfinished(cache: Path) -> None:
    """Delete what a kill left of shards that were being written; no rank may be writing."""
    finished = set(finished_shards(cache))
    for path in (cache / SHARDS).glob("*"):
        if path.name.startswith(".") or (path.suffix == ".safetensors" and path.stem not in finished):
            path.unlink()


Stamp = list[int]  # size in bytes, and the time of the last change in nanoseconds


def verify_shards(cache: Path, names: Iterable[str]) -> dict[str, Stamp]:
    """Compare shards with their JSON files: the size of each, and the SHA-256 where none has done so yet.

    Returns:
        What VERIFIED shall say of them (`note_verified`).

    Raises:
        TrainError: a shard is missing or altered.
    """
    before = read_json(cache / VERIFIED) if (cache / VERIFIED).is_file() else {}
    stamps: dict[str, Stamp] = {}
    for name in names:
        shard = cache / SHARDS / f"{name}.safetensors"
        facts = read_json(shard.with_suffix(".json"))
        stamps[name] = _stamp(shard) if shard.is_file() else [0, 0]
        same = stamps[name][0] == facts["bytes"] and (
            before.get(name) == stamps[name] or sha256_file(shard) == facts["sha256"]
        )
        if not same:
            raise TrainError(
                "is missing, or differs from the SHA-256 in the JSON file beside it",
                where=shard,
                fix="Delete both files: the same command computes their samples again",
            )
    return stamps


def note_verified(cache: Path, stamps: dict[str, Stamp]) -> None:
    """Keep what `verify_shards` found, of all shards."""
    write_json(cache / VERIFIED, stamps)


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def write_index(cache: Path) -> None:
    """Make the index where it is not that of the shards which are there; one process calls it.

    Where two shards have the same record, the first one's counts.
    """
    names, index, facts = finished_shards(cache), cache / INDEX, cache / INDEX_FACTS
    if index.is_file() and facts.is_file():
        said = read_json(facts)
        if said["shards"] == names and said["sha256"] == sha256_file(index):
            return
    keys, places = [np.empty(0, np.uint64)], [np.empty(0, PLACE)]
    for number, name in enumerate(names):
        shard_keys, shard_places = _table(cache / SHARDS / f"{name}.safetensors", number)
        keys.append(shard_keys)
        places.append(shard_places)
    unique, chosen = np.unique(np.concatenate(keys), return_index=True)
    # Bytes: what all versions of safetensors have a name for.
    tensors = {
        "keys": torch.from_numpy(unique.view(np.uint8)),
        "places": torch.from_numpy(np.concatenate(places)[chosen].view(np.uint8)),
    }
    with writing(index):
        _save(tensors, index, metadata={"shards": json.dumps(names)})
        write_json(facts, {"sha256": sha256_file(index), "records": len(unique), "shards": names})


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, there whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    save_file(tensors, temporary, metadata=metadata)
    temporary.chmod(0o644)  # safetensors lets the owner alone read; later students may be another user's
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def _table(shard: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The keys of a shard's records, [R], and their places, [R]."""
    with safe_open(shard, framework="np") as stream:
        columns = {
            name: stream.get_tensor(name).view(np.uint64)
            for name in ("keys", "inputs", "positions", "question_lengths")
        }
    places = np.zeros(len(columns["keys"]), PLACE)
    places["shard"] = number
    places["first"] = np.cumsum(columns["positions"]) - columns["positions"]
    places["positions"], places["question"] = columns["positions"], columns["question_lengths"]
    places["inputs"] = columns["inputs"]
    return columns["keys"], places


class TeacherStore:
    """The records in a folder, as the index had them when it was opened; a copy elsewhere opens it again."""

    def __init__(self, cache: Path) -> None:
        """Look into `cache`, whose shards were verified before and whose index is there."""
        self.cache = cache

    def __len__(self) -> int:
        return len(self._keys)

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Bool, [N]: which of the keys, uint64 [N], have a record."""
        if not len(self._keys):
            return np.zeros(len(keys), bool)
        found = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return self._keys[found] == keys

    def record(self, key: int) -> Record | None:
        """What is known of the record under `key`; None where there is none."""
        place = self._place(key)
        if place is None:
            return None
        return Record(key=key, question_length=int(place["question"]), inputs=int(place["inputs"]))

    def read(self, key: int) -> Packed | None:
        """The features under `key`, [N, L, D]; None where there are none."""
        place = self._place(key)
        if place is None:
            return None
        shard = self._opened(self.cache / SHARDS / f"{self._shards[place['shard']]}.safetensors")
        first = int(place["first"])
        rows = slice(first, first + int(place["positions"]))
        values = shard.get_slice("values")[rows]
        return Packed(values=values, scales=shard.get_slice("scales")[rows] if _is_int8(values) else None)

    def _place(self, key: int) -> Any:
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        return self._places[place] if place < len(self._keys) and self._keys[place] == key else None

    @cached_property
    def _opened(self) -> Callable[[Path], Any]:
        return lru_cache(maxsize=OPEN_SHARDS)(partial(safe_open, framework="pt"))

    @cached_property
    def _index(self) -> Any:
        return safe_open(self.cache / INDEX, framework="pt")

    @cached_property
    def _keys(self) -> np.ndarray:
        return self._index.get_tensor("keys").numpy().view(np.uint64)

    @cached_property
    def _places(self) -> np.ndarray:
        return self._index.get_tensor("places").numpy().view(PLACE)

    @cached_property
    def _shards(self) -> list[str]:
        return json.loads(self._index.metadata()["shards"])

    def __getstate__(self) -> dict[str, Any]:
        return {"cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _is_int8(values: torch.Tensor) -> bool:
    return values.dtype == torch.int8

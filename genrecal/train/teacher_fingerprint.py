"""What a cache of teacher features depends on, so that a wrong one is refused.

    CACHE/fingerprint.json   the teacher's weights, config, processor and tokenizer files (SHA-256 each),
                             image limits, precision, depths, storage type
    CACHE/hashes.json        SHA-256 of weight files, with the sizes and times at which they were taken

Content decides: a copied or moved teacher is the same one. Sizes and times only spare the hashing. What a
sample asks and answers stands in its key, so whose answers are learned is no part of the fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from genrecal.core.errors import ConfigError
from genrecal.core.files import read_json, sha256_file, write_json
from genrecal.core.manifest import NAME
from genrecal.train.settings import RunConfig, TeacherCacheConfig

FINGERPRINT, HASHES = "fingerprint.json", "hashes.json"
FORMAT = 1  # of shards and index
WEIGHTS = ("*.safetensors", "*.bin")
# Files beside the weights that say how a model reads; not how it writes, or where it came from.
SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")
NO_SETTINGS = ("generation_config.json", "*.index.json", NAME)
HASHING_THREADS = 8


def fingerprint(config: RunConfig, place: int) -> dict[str, Any]:
    """That of the teacher at `place` with this config, but for its weights (`weight_hashes`)."""
    teacher, cache = config.sources[place].path, cache_config(config)
    return {
        "format": FORMAT,
        "teacher files": {
            path.name: sha256_file(path)
            for path in sorted(_files(teacher, SETTINGS))
            if not any(path.match(kind) for kind in NO_SETTINGS)
        },
        "data.max_tiles": config.data.max_tiles,
        "data.max_pixels": config.data.max_pixels,
        "engine.precision": config.engine.precision,
        "teacher_cache.dtype": cache.dtype,
        "depths": list(stored_depths(config)),
    }


def stored_depths(config: RunConfig) -> tuple[float, ...]:
    """The depths that this config reads: those that are recalibrated, and the last one, for the head."""
    return tuple(sorted({*config.recalibrator.layers, 1.0}))


def weight_hashes(teacher: Path, cache: Path) -> dict[str, str]:
    """SHA-256 of the teacher's weight files by name; a file that has not changed is not read again."""
    known = read_json(cache / HASHES) if (cache / HASHES).is_file() else {}
    files = sorted(_files(teacher, WEIGHTS))
    stamps = {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}

    def hashed(path: Path) -> str:
        entry = known.get(str(path.resolve()), {})
        return entry["sha256"] if entry.get("stamp") == stamps[str(path.resolve())] else sha256_file(path)

    with ThreadPoolExecutor(HASHING_THREADS) as pool:  # hashlib lets other threads run meanwhile
        hashes = dict(zip((path.name for path in files), pool.map(hashed, files), strict=True))
    entries = {
        str(path.resolve()): {"stamp": stamps[str(path.resolve())], "sha256": hashes[path.name]}
        for path in files
    }
    if entries != known:
        write_json(cache / HASHES, entries)
    return hashes


def require_same(cache: Path, now: dict[str, Any]) -> list[float]:
    """Compare `now` with the fingerprint of the folder; returns the depths that are stored there.

    What `now` lacks, as the weights before ranks start, is not compared. A cache may hold more depths than
    are read.

    Raises:
        ConfigError: the features were made by, or for, something else; it is named.
    """
    before = read_json(cache / FINGERPRINT)
    depths = before.get("depths", [])
    then = before | {"depths": now["depths"] if set(now["depths"]) <= set(depths) else depths}
    differing = sorted(name for name in now if then.get(name) != now[name])
    if differing:
        raise ConfigError(
            "holds the features of another teacher or of other settings: "
            + "; ".join(
                line for name in differing for line in _differences(name, then.get(name), now.get(name))
            ),
            where=cache,
            fix="Name another folder in teacher_cache.path, or delete this one",
        )
    return depths


def _differences(name: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        files = sorted(file for file in then.keys() | now.keys() if then.get(file) != now.get(file))
        yield f"{name} ({', '.join(files)})"
    else:
        yield f"{name} was {then}, is {now}"


def _files(folder: Path, kinds: tuple[str, ...]) -> set[Path]:
    return {path for kind in kinds for path in folder.glob(kind) if path.is_file()}


def cache_config(config: RunConfig) -> TeacherCacheConfig:
    assert config.teacher_cache is not None
    return config.teacher_cache


def cache_folder(config: RunConfig, place: int) -> Path:
    """Where the features of the teacher at `place` lie."""
    path = cache_config(config).path
    return path if len(config.sources) == 1 else path / f"teacher-{place}"

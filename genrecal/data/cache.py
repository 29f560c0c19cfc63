"""A source as memory-mapped Arrow tables, built once: millions of rows cost a process some open files.

    CACHE/NAME-KEY/samples.arrow    a row for each sample; record batches of SAMPLE_BATCH
                   images.arrow     encoded images that came with their row (parquet, data URIs)
                   columns.npz      domains [N], characters [N], images [N]
                   bad.jsonl        rows that were skipped, and why
                   source.json      what it was built from

KEY stands for the source's path, its files' sizes and times, and the options that change its samples; the
digest in source.json for the samples themselves, so that a file that was only touched has the same. One
process builds, others wait for it; the folder is there whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genrecal.core.console import console
from genrecal.core.eta import with_eta
from genrecal.core.files import atomic_folder, read_json, sha256_bytes, write_json
from genrecal.core.types import DOMAINS, ImageSource, Sample, Turn
from genrecal.data.bad import BadRows, Journal, journal_lines
from genrecal.data.cache_writer import COLUMNS, IMAGES, SAMPLE_BATCH, SAMPLES, TableWriter
from genrecal.data.references import CachedImage, DatasetImage, TarMember, open_arrow
from genrecal.data.source import SourceConfig, read_source, source_rows

VERSION = 2  # of the layout; a table of another one is built anew
BAD, FACTS = "bad.jsonl", "source.json"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A source's samples on disk; a copy in another process opens the files again."""

    folder: Path
    source: SourceConfig

    def __len__(self) -> int:
        return len(self.columns["domains"])

    def __getitem__(self, index: int) -> Sample:
        batch = self._reader.get_batch(index // SAMPLE_BATCH)
        row = batch.slice(index % SAMPLE_BATCH, 1).to_pylist()[0]
        return Sample(
            id=row["id"],
            images=tuple(self._image(image) for image in row["images"]),
            turns=tuple(Turn(role=turn["role"], text=turn["text"]) for turn in row["turns"]),
            domain=DOMAINS[row["domain"]],
            source=self.source.name,
        )

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """domains uint8 [N], places in DOMAINS; characters int32 [N], of all turns; images uint16 [N]."""
        with np.load(self.folder / COLUMNS) as columns:
            return dict(columns)

    @cached_property
    def facts(self) -> dict[str, Any]:
        return read_json(self.folder / FACTS)

    @property
    def skipped(self) -> int:
        """Rows that were bad; the journal in the folder names them."""
        return int(self.facts["bad"])

    @property
    def digest(self) -> str:
        """Of all samples, in their order (cache_writer.py)."""
        return str(self.facts["digest"])

    def ids(self) -> Iterator[Any]:
        """The ids as Arrow arrays, one for each record batch."""
        for number in range(self._reader.num_record_batches):
            yield self._reader.get_batch(number).column("id")

    @cached_property
    def _reader(self) -> Any:
        return open_arrow(self.folder / SAMPLES)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _image(self, row: dict[str, Any]) -> ImageSource:
        name, at, size = row["name"], row["at"], row["size"]
        if row["kind"] == "file":
            return self.source.image_root / name
        if row["kind"] == "tar":
            return TarMember(tar=Path(self.facts["files"][row["file"]]), name=name, offset=at, size=size)
        if row["kind"] == "dataset":
            return DatasetImage(folder=self.source.path, column=name, row=at, place=size)
        return CachedImage(file=self.folder / IMAGES, index=at, name=name)


def open_table(source: SourceConfig, cache: Path, bad: BadRows) -> Table:
    """The table of `source` in the folder `cache`; it is built where it is not there yet.

    Raises:
        DataError: the source cannot be read, or has more bad rows than `bad` allows.
    """
    from filelock import FileLock

    facts = _facts(source)
    key = sha256_bytes(json.dumps(facts, sort_keys=True).encode())[:16]
    folder = cache / f"{_plain(source.path.stem)}-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not _usable(folder, bad):
            for leftover in cache.glob(f".{folder.name}.*/"):  # of a build that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with atomic_folder(folder) as target:
                _build(source, target, facts, bad)
            if bad.skips and (skipped := len(journal_lines(folder / BAD))):
                console.print(f"{source.path}: {skipped:,} bad rows skipped, see {folder / BAD}")
        else:
            for line in journal_lines(folder / BAD):
                bad.add(line)
    return Table(folder=folder, source=source)


def _usable(folder: Path, bad: BadRows) -> bool:
    """Bad rows may have been mended without a change to the source's own files: an image that was missing.

    A run that skips keeps to what it skipped first, so that its order stays; one that stops reads again.
    """
    if not (folder / FACTS).is_file():
        return False
    facts = read_json(folder / FACTS)
    return facts["bad"] == 0 or (bad.skips and facts["skips"])


def _build(source: SourceConfig, folder: Path, facts: dict[str, Any], bad: BadRows) -> None:
    rows = source_rows(source)
    with (
        Journal(folder / BAD, source.name, bad) as journal,
        TableWriter(folder, root=source.image_root, files=facts["files"]) as writer,
    ):
        readings = with_eta(
            read_source(source, rows),
            what=f"reading {source.path}",
            total=rows.total,
            done=lambda reading: reading.row.done,
        )
        for reading in readings:
            if reading.error is not None:
                journal.add(reading)
            else:
                writer.add(reading.samples)
    found = {"samples": writer.count, "digest": writer.digest, "bad": journal.count, "skips": bad.skips}
    write_json(folder / FACTS, facts | found)


def _facts(source: SourceConfig) -> dict[str, Any]:
    """What a table depends on. The weight is not of it, nor are excluded ids: they choose among its rows."""
    kind, files = source.resolved()
    data = [file for one in files for file in (sorted(one.rglob("*")) if one.is_dir() else [one])]
    stats = [(str(file), file.stat()) for file in data if file.is_file()]
    return {
        "version": VERSION,
        "path": str(source.path.absolute()),
        "format": kind,
        "named": source.format,
        "images": str(source.image_root.absolute()),
        "domain": source.domain,
        "turns": source.turns,
        "files": [str(file.absolute()) for file in files],
        "sizes": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
    }


def _plain(stem: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in stem)[:60]

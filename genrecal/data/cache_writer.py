"""Writes the Arrow files of a cached source (cache.py) batch by batch: memory stays that of one batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genrecal.core.types import DOMAINS, ImageSource, Sample
from genrecal.data.references import STORED_BATCH, DatasetImage, TarMember

SAMPLE_BATCH = 1024
SAMPLES, IMAGES, COLUMNS = "samples.arrow", "images.arrow", "columns.npz"
KINDS = {"domains": np.uint8, "characters": np.int32, "images": np.uint16}


class TableWriter:
    """A context: what was added lies in `folder` when it ends well."""

    def __init__(self, folder: Path, *, root: Path, files: Sequence[str]) -> None:
        """Open the files.

        Args:
            folder: where they are written.
            root: the folder that image paths start from; paths are kept from there on.
            files: absolute paths of the source's files; tar members refer to them by place.
        """
        import pyarrow

        self._pyarrow, self._folder, self._prefix = pyarrow, folder, f"{root}{os.sep}"
        self._files = {name: place for place, name in enumerate(files)}
        text, whole = pyarrow.string(), pyarrow.int64()
        turn = pyarrow.struct([("role", text), ("text", text)])
        image = pyarrow.struct(
            [("kind", text), ("name", text), ("file", whole), ("at", whole), ("size", whole)]
        )
        self._sample_schema = pyarrow.schema(
            [
                ("id", text),
                ("domain", pyarrow.uint8()),
                ("turns", pyarrow.list_(turn)),
                ("images", pyarrow.list_(image)),
            ]
        )
        self._image_schema = pyarrow.schema([("data", pyarrow.large_binary())])
        self._samples = pyarrow.ipc.new_file(str(folder / SAMPLES), self._sample_schema)
        self._images = pyarrow.ipc.new_file(str(folder / IMAGES), self._image_schema)
        self._rows: list[dict[str, Any]] = []
        self._data: list[dict[str, bytes]] = []
        self._stored = self.count = 0
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in KINDS}
        self._digest = hashlib.sha256()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._write_rows()
            self._write_data()
        self._samples.close()
        self._images.close()
        if kind is None:
            columns = {
                name: np.concatenate([np.zeros(0, KINDS[name]), *parts])
                for name, parts in self._columns.items()
            }
            np.savez(self._folder / COLUMNS, **columns)

    @property
    def digest(self) -> str:
        """SHA-256 of all samples, in their order: their ids, domains, turns and the names of their images."""
        return self._digest.hexdigest()

    def add(self, samples: Sequence[Sample]) -> None:
        """Add the samples of one row; an image that they share is stored once."""
        known: dict[int, dict[str, Any]] = {}
        for sample in samples:
            images = []
            for image in sample.images:
                if id(image) not in known:
                    known[id(image)] = self._image(image)
                images.append(known[id(image)])
            self._rows.append(
                {
                    "id": sample.id,
                    "domain": DOMAINS.index(sample.domain),
                    "turns": [{"role": turn.role, "text": turn.text} for turn in sample.turns],
                    "images": images,
                }
            )
            self.count += 1
            if len(self._rows) == SAMPLE_BATCH:
                self._write_rows()

    def _image(self, image: ImageSource) -> dict[str, Any]:
        if isinstance(image, Path):
            return {"kind": "file", "name": str(image).removeprefix(self._prefix)}
        if isinstance(image, TarMember):
            file = self._files[str(image.tar.absolute())]
            return {"kind": "tar", "name": image.name, "file": file, "at": image.offset, "size": image.size}
        if isinstance(image, DatasetImage):
            return {"kind": "dataset", "name": image.column, "at": image.row, "size": image.place}
        self._data.append({"data": image.read()})
        self._stored += 1
        if len(self._data) == STORED_BATCH:
            self._write_data()
        return {"kind": "cached", "name": str(image), "at": self._stored - 1}

    def _write_rows(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._samples.write_batch(self._pyarrow.RecordBatch.from_pylist(rows, self._sample_schema))
            found = {
                "domains": [row["domain"] for row in rows],
                "characters": [sum(len(turn["text"]) for turn in row["turns"]) for row in rows],
                "images": [len(row["images"]) for row in rows],
            }
            for name, values in found.items():
                self._columns[name].append(np.array(values, KINDS[name]))
            self._digest.update(json.dumps([_said(row) for row in rows]).encode())

    def _write_data(self) -> None:
        data, self._data = self._data, []
        if data:
            self._images.write_batch(self._pyarrow.RecordBatch.from_pylist(data, self._image_schema))


def _said(row: dict[str, Any]) -> list[Any]:
    """What is digested of a row: where in a tar or a cache an image lies may change."""
    return [
        row["id"],
        row["domain"],
        row["turns"],
        [(image["kind"], image["name"]) for image in row["images"]],
    ]

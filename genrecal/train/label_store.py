"""Answers by what was asked: a journal while they are made, then one sorted table on disk.

    JOURNALS/rank-0.jsonl …                                      {"key", "answer"} as they come
    keys.npy, offsets.npy, answers.bin, manifest.json            all of them, sorted; the manifest last

An answer belongs to what was asked: its key is a digest of the images' names and the turns before it. So rows
may come in any order, and equal questions share an answer.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from genrecal.core.errors import DataError
from genrecal.core.files import atomic_folder
from genrecal.core.manifest import verify_manifest, write_manifest
from genrecal.core.types import Sample


def label_key(sample: Sample) -> int:
    """64 bits of what is asked: the images' names and the turns before the answer."""
    asked = [str(image) for image in sample.images] + [turn.text for turn in sample.turns[:-1]]
    return int.from_bytes(hashlib.sha256(json.dumps(asked).encode()).digest()[:8], "little")


class Labels:
    """The labels in a folder, looked up on disk: millions of answers take no memory."""

    def __init__(self, folder: Path) -> None:
        verify_manifest(folder, kind="labels")
        self.folder = folder
        self.keys = np.load(folder / "keys.npy", mmap_mode="r")
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self.text = np.memmap(folder / "answers.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.keys)

    def answer(self, sample: Sample) -> str:
        """The teacher's answer to what `sample` asks; empty where it had none.

        Raises:
            DataError: the labels were made for other data.
        """
        key = np.uint64(label_key(sample))
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            raise DataError(
                f"has no label for sample '{sample.id}' of {sample.source}",
                where=self.folder,
                fix="The data changed since the teacher answered it: delete this folder",
            )
        return bytes(self.text[self.offsets[place] : self.offsets[place + 1]]).decode()


def end_last_line(journal: Path) -> None:
    """A line that a kill cut off stands alone, so that the next one is whole."""
    if journal.is_file() and not journal.read_bytes().endswith(b"\n"):
        with journal.open("a", encoding="utf-8") as stream:
            stream.write("\n")


def journal_rows(journal: Path) -> list[dict[str, Any]]:
    """The journal's rows; a kill can cut the last one off."""
    rows = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_labels(folder: Path, journals: Path) -> int:
    """The journals as one sorted table; returns the number of answers in it."""
    answers = {
        row["key"]: row["answer"]
        for journal in sorted(journals.glob("*.jsonl"))
        for row in journal_rows(journal)
    }
    keys = sorted(answers)
    texts = [answers[key].encode() for key in keys]
    with atomic_folder(folder) as temporary:
        np.save(temporary / "keys.npy", np.array(keys, dtype=np.uint64))
        np.save(temporary / "offsets.npy", np.cumsum([0, *map(len, texts)], dtype=np.int64))
        (temporary / "answers.bin").write_bytes(b"".join(texts) or b"\0")
        write_manifest(temporary, kind="labels", questions=len(keys))
    return sum(map(bool, texts))

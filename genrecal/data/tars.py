"""WebDataset tars: files that share a key are one row, a JSON and its images.

    000017.json  000017.jpg            or    000017.json  000017.0.jpg  000017.1.jpg

Only headers and JSONs are read; images stay where they are, as TarMembers.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from genrecal.core.errors import DataError
from genrecal.data.references import TarMember
from genrecal.data.rows import Row, Rows

IMAGE_ENDINGS = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"))


def tar_rows(shards: Sequence[Path]) -> Rows:
    """The rows of the shards, one shard after the other; a key is one row where its files follow each other.

    Raises:
        DataError: a shard is missing, compressed or broken off.
    """
    for shard in shards:
        if not shard.is_file():
            raise DataError("no such file", where=shard)
    return Rows(total=sum(shard.stat().st_size for shard in shards), read=lambda: _read(shards))


def _read(shards: Sequence[Path]) -> Iterator[Row]:
    number = before = 0
    for shard in shards:
        for key, members in groupby(_members(shard), key=lambda member: _split(member.name)[0]):
            held = list(members)
            place = f"key '{key}'"
            done = before + held[-1].offset + held[-1].size
            content = _content(held, key, f"{shard} {place}")
            yield Row(number=number, file=shard, place=place, content=content, done=done)
            number += 1
        before += shard.stat().st_size


def _members(shard: Path) -> Iterator[TarMember]:
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isfile() and _split(member.name)[0] is not None:
                    yield TarMember(tar=shard, name=member.name, offset=member.offset_data, size=member.size)
                tar.members = []  # type: ignore[misc]  # tarfile keeps every header it has seen
    except tarfile.ReadError as error:
        raise DataError(
            f"is no whole, uncompressed tar ({error})", where=shard, fix="Unpack or copy it again"
        ) from None


def _split(name: str) -> tuple[str | None, str]:
    """WebDataset's rule: the key ends at the first dot of the file name."""
    from webdataset.tariterators import base_plus_ext

    key, ending = base_plus_ext(name)
    return key, (ending or "").lower()


def _content(members: list[TarMember], key: str, where: str) -> Any:
    """The JSON's object with the members as its images."""
    texts = [member for member in members if _split(member.name)[1].rpartition(".")[2] == "json"]
    if len(texts) != 1:
        return DataError(f"has {len(texts)} JSON files", where=where)
    try:
        content = json.loads(texts[0].read().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return DataError(f"is not valid JSON ({error})", where=where)
    if isinstance(content, list):
        content = {"conversations": content}
    if not isinstance(content, dict):
        return DataError("holds no JSON object", where=where)
    pictures = [member for member in members if _split(member.name)[1].rpartition(".")[2] in IMAGE_ENDINGS]
    pictures.sort(key=lambda member: _natural(_split(member.name)[1]))
    named = content.get("image") or content.get("images") or []
    named = [named] if isinstance(named, str) else named
    content = {name: value for name, value in content.items() if name not in ("image", "images")}
    content.setdefault("id", key)
    content["images"] = _named(named, pictures)
    return content


def _named(named: Any, pictures: list[TarMember]) -> Any:
    """The pictures in the JSON's order where it names them, else in the order of their endings."""
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return named
    by_name = {}
    for picture in pictures:
        for name in (_split(picture.name)[1], PurePosixPath(picture.name).name, picture.name):
            by_name[name] = picture
    if named and all(name in by_name for name in named):
        return [by_name[name] for name in named]
    if not named or len(named) == len(pictures):
        # Names from before the tar was written: as many as there are pictures, in the same order.
        return pictures
    return [by_name.get(name, name) for name in named]


def _natural(ending: str) -> list[tuple[int, str]]:
    """So that 10.jpg comes behind 2.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", ending)]

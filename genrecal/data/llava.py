"""Read LLaVA conversation JSON: `[{"id", "image", "conversations": [{"from", "value"}, …], "domain"}, …]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genrecal.core.errors import DataError, GenrecalError
from genrecal.core.files import read_json
from genrecal.core.types import DOMAINS, Sample, Turn

IMAGE_MARK = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def read_llava(path: Path, *, images: Path | None = None, domain: str | None = None) -> list[Sample]:
    """Every sample of one LLaVA JSON file.

    A conversation of several turns is one sample: its last answer is learned, the turns before are context.

    Args:
        path: the JSON file.
        images: the folder that image paths start from; default: the folder of `path`.
        domain: the domain of samples that name none of their own.

    Raises:
        DataError: the file or one of its rows cannot be used; the row is named.
    """
    try:
        rows = read_json(path)
    except GenrecalError as error:
        raise DataError(error.what, where=path, fix=error.fix) from None
    if not isinstance(rows, list) or not rows:
        raise DataError("is not a non-empty JSON list of conversations", where=path)
    root = images if images is not None else path.parent
    return [_sample(row, f"{path} row {number}", root, domain, path) for number, row in enumerate(rows)]


def _sample(row: Any, where: str, root: Path, domain: str | None, path: Path) -> Sample:
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
        raise DataError("has no list 'conversations'", where=where)
    turns = tuple(_turn(turn, where) for turn in row["conversations"])
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise DataError("does not end with an answer", where=where)
    if not turns[-1].text.strip():
        raise DataError("has an empty answer", where=where)
    if IMAGE_MARK in turns[-1].text:
        raise DataError(f"has an '{IMAGE_MARK}' in its answer", where=where)
    names = row.get("image") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("'image' is neither a path nor a list of paths", where=where)
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if marks != len(names):
        raise DataError(f"names {len(names)} images but holds {marks} '{IMAGE_MARK}'", where=where)
    tag = row.get("domain") or domain
    if tag not in DOMAINS:
        raise DataError(
            f"has the domain '{tag}'",
            where=where,
            fix=f"Give the row or its source one of {', '.join(DOMAINS)}",
        )
    return Sample(
        id=str(row.get("id", where)),
        images=tuple(_inside(root, name, where) for name in names),
        turns=turns,
        domain=tag,
        source=str(path),
    )


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict) or turn.get("from") not in ROLES or not isinstance(turn.get("value"), str):
        raise DataError(f"has a turn that is not {{'from': human|gpt, 'value': text}}: {turn!r}", where=where)
    return Turn(role=ROLES[turn["from"]], text=turn["value"])


def _inside(root: Path, name: str, where: str) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"names the image '{name}', outside of {root}", where=where)
    return path

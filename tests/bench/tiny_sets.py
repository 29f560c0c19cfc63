"""Small benchmark files, written with pandas and pyarrow: other code than what reads or draws them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pandas
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def png(colour: str, size: tuple[int, int] = (40, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(stream, format="PNG")
    return stream.getvalue()


def base64_png(colour: str) -> str:
    return base64.b64encode(png(colour)).decode()


def mmb_row(index: int, options: list[str], answer: str, **more: Any) -> dict[str, Any]:
    return {
        "index": index,
        "question": "Which colour?",
        "hint": None,
        **dict.fromkeys("ABCD"),
        **dict(zip("ABCD", options, strict=False)),
        "answer": answer,
        "category": "colour",
        "l2-category": "coarse_perception",
        "split": "dev",
        "image": base64_png("red"),
        **more,
    }


def write_mmb(path: Path, rows: list[dict[str, Any]]) -> Path:
    pandas.DataFrame(rows).to_csv(path, sep="\t", index=False)
    return path


def mmmu_row(name: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "question": "<image 1> Which colour is it?",
        "options": "['red', 'green']",
        "explanation": "",
        **{f"image_{number}": None for number in range(1, 8)},
        "image_1": {"bytes": png("red"), "path": "1.png"},
        "img_type": "[]",
        "answer": "A",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "",
        **more,
    }


def write_mmmu(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_parquet(path)
    return path


def write_mmvet(folder: Path, rows: dict[str, dict[str, Any]]) -> Path:
    (folder / "images").mkdir(parents=True)
    for row in rows.values():
        (folder / "images" / row["imagename"]).write_bytes(png("blue"))
    (folder / "mm-vet.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def mmvet_row(number: int, answer: str, *capability: str) -> dict[str, Any]:
    return {
        "imagename": f"v1_{number}.png",
        "question": "What is shown?",
        "answer": answer,
        "capability": list(capability),
    }

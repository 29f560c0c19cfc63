"""Model cards: what hubs read at the head, and what people read below."""

from __future__ import annotations

from pathlib import Path

import yaml

from genrecal.core.card import write_build_card, write_student_card

PROVENANCE = {
    "run": "first",
    "method": "genrecal",
    "teacher": "big/teacher",
    "base_student": "small/student",
    "stage": None,
    "weights": {"model.safetensors": "ab12"},
}


def read(path: Path) -> tuple[dict, str]:
    _, front, body = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_student_card(tmp_path: Path) -> None:
    front, body = read(write_student_card(tmp_path, PROVENANCE))
    assert front == {
        "base_model": ["small/student", "big/teacher"],
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["genrecal", "distillation"],
    }
    assert "# first\n" in body
    assert "`small/student` taught by `big/teacher`" in body
    assert "AutoModelForImageTextToText.from_pretrained" in body
    provenance = yaml.safe_load(body.split("```yaml\n")[-1].split("```")[0])
    assert provenance == {key: value for key, value in PROVENANCE.items() if value is not None}


def test_the_build_card(tmp_path: Path) -> None:
    meaning = {"name": "int8", "weights": {"bits": 8}}
    path = write_build_card(
        tmp_path, provenance=PROVENANCE, precision="int8", weights_bytes=1_250_000, quantization=meaning
    )
    front, body = read(path)
    assert front["library_name"] == "onnx"
    assert "# first, int8 edge build" in body
    assert "weights take 1.2 MB" in body
    assert "genrecal ask" in body
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0]) == meaning


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    front, body = read(write_student_card(tmp_path, {"student": "plain", "weights": {}}))
    assert "base_model" not in front
    assert front["tags"] == ["genrecal"]
    assert "None" not in body


def test_cards_name_licence_scores_and_data(tmp_path: Path) -> None:
    entry = {"score": 0.612, "questions": 200, "interval_95": [0.54, 0.68]}
    facts = {
        "licences": {"teacher": "mit", "base student": "apache-2.0"},
        "scores": {"MMB": entry},
        "data": ["knowledge.json"],
    }
    front, body = read(write_student_card(tmp_path, {**PROVENANCE, **facts}))
    assert front["license"] == "apache-2.0"
    assert "`apache-2.0`. The strictest of its parents' (teacher: mit, base student: apache-2.0)." in body
    assert "| MMB | 61.2 | 54.0 to 68.0 | 200 |" in body
    assert "knowledge.json" in body
    facts["licences"]["teacher"] = None
    front, body = read(write_student_card(tmp_path, {**PROVENANCE, **facts}))
    assert "license" not in front
    assert "`unknown`. The licence is not settled here" in body

"""Finding the student: run folders, plain folders, and one clear line for everything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from genrecal.core.errors import ModelError
from genrecal.core.files import sha256_file
from genrecal.core.manifest import write_manifest
from genrecal.export.student import find_student


@pytest.fixture
def run(student_folder: Path, tmp_path: Path) -> Path:
    """A finished run folder of two stages."""
    folder = tmp_path / "runs" / "first"
    shutil.copytree(student_folder, folder / "student")
    (folder / "config.yaml").write_text("method: genrecal\n", encoding="utf-8")
    for stage in ("2-distill", "3-finetune"):
        (folder / "stages" / stage).mkdir(parents=True)
    config = {"method": "genrecal", "teacher": "big/teacher", "student": "small/student"}
    write_manifest(folder, kind="run", config=config)
    return folder


def test_a_run_names_its_origin(run: Path) -> None:
    student = find_student(run)
    assert student.folder == run / "student"
    assert student.model_type == "qwen2_vl"
    found = student.provenance
    assert (found["run"], found["method"], found["stage"]) == ("first", "genrecal", "3-finetune")
    assert (found["teacher"], found["base_student"]) == ("big/teacher", "small/student")
    assert found["run_manifest"] == sha256_file(run / "manifest.json")
    assert found["run_versions"]["transformers"]
    assert found["weights"] == {"model.safetensors": sha256_file(run / "student" / "model.safetensors")}


def test_a_plain_folder_names_its_weights(student_folder: Path) -> None:
    student = find_student(student_folder)
    assert student.folder == student_folder
    assert set(student.provenance) == {"student", "weights", "licences"}
    assert student.provenance["licences"] == {"student": None}


def test_licences_data_and_scores_travel_along(run: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    config = {
        "method": "genrecal",
        "teacher": str(teacher),
        "student": "small/student",
        "data": {"sources": [{"path": "data/knowledge.json"}]},
    }
    write_manifest(run, kind="run", config=config)
    score = {"score": {"title": "MMB", "score": 0.5, "n": 20}, "interval": {"low": 0.3, "high": 0.7}}
    (run / "student-bench").mkdir()
    (run / "student-bench" / "bench.json").write_text(json.dumps({"results": {"mmb": score}}))
    found = find_student(run).provenance
    assert found["licences"] == {"teacher teacher": "mit", "base student": None}
    assert found["data"] == ["knowledge.json"]
    assert found["scores"] == {"MMB": {"score": 0.5, "questions": 20, "interval_95": [0.3, 0.7]}}


def test_wrong_folders_get_one_clear_line(run: Path, student_folder: Path, tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ModelError) as caught:
            find_student(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such run or model folder" in message(tmp_path / "nothing")
    assert "has no config.json" in message(tmp_path)

    (run / "manifest.json").unlink()
    assert "is a run that is not finished" in message(run)

    build = tmp_path / "build"
    build.mkdir()
    write_manifest(build, kind="build")
    assert "is a build" in message(build)

    other = tmp_path / "other"
    shutil.copytree(student_folder, other)
    (other / "model.safetensors").unlink()
    assert "holds no weights" in message(other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    assert "model_type 'llava' cannot be exported. Supported: idefics3, internvl" in message(other)

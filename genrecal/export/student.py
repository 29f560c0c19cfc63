"""What can be exported: a run's student, or any plain Hugging Face folder of a supported family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrecal.core.errors import ModelError
from genrecal.core.files import read_json, sha256_file
from genrecal.core.licence import licence_of
from genrecal.core.manifest import NAME, read_manifest
from genrecal.export.families import graphs_of
from genrecal.models.pickles import require_safetensors

STUDENT = "student"
RUN_CONFIG = "config.yaml"
WEIGHTS = "*.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A checkpoint that can be exported."""

    folder: Path
    """The folder that `save_pretrained` wrote."""
    model_type: str
    provenance: dict[str, Any]
    """Where it came from, for the build's manifest: run, method, stage, models, versions, weight hashes."""


def find_student(path: Path) -> Student:
    """The student that `path` names: a run folder (its `student/`) or a model folder.

    Raises:
        ModelError: neither, an unfinished run, a build, no weights, or a family that cannot be exported.
    """
    if not path.is_dir():
        raise ModelError("no such run or model folder", where=path)
    kind = read_json(path / NAME).get("kind") if (path / NAME).is_file() else None
    if kind == "build":
        raise ModelError(
            "is a build, which is exported already", where=path, fix="Name the run or the student"
        )
    if kind == "run":
        return _checked(path / STUDENT, _run_facts(path))
    if (path / RUN_CONFIG).is_file() and not (path / "config.json").is_file():
        raise ModelError(
            "is a run that is not finished", where=path, fix="Run the same distill command again"
        )
    return _checked(path, {"licences": {"student": licence_of(path)}})


def family_of(folder: Path) -> str:
    """The model_type of a model folder, one that can be exported.

    Raises:
        ModelError: there is no config.json, or the family cannot be exported.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            "has no config.json", where=folder, fix="Name a run folder or a folder written by save_pretrained"
        )
    model_type = read_json(folder / "config.json").get("model_type")
    graphs_of(model_type, where=folder)
    return model_type


def _checked(folder: Path, facts: dict[str, Any]) -> Student:
    model_type = family_of(folder)
    weights = sorted(folder.glob(WEIGHTS))
    if not weights:
        require_safetensors(folder)
        raise ModelError(f"holds no weights ({WEIGHTS})", where=folder)
    provenance = {
        "student": folder.resolve().name,
        "weights": {path.name: sha256_file(path) for path in weights},
        **facts,
        **_scores(folder),
    }
    return Student(folder=folder, model_type=model_type, provenance=provenance)


def _run_facts(run: Path) -> dict[str, Any]:
    manifest = read_manifest(run, kind="run")
    config = manifest.get("config", {})
    teachers = [Path(source["path"]) for source in config.get("teachers") or ()]
    if config.get("teacher"):
        teachers = [Path(config["teacher"])]
    base = config.get("student")
    stages = sorted(path.name for path in (run / "stages").glob("*") if path.is_dir())
    return {
        "run": run.resolve().name,
        "run_manifest": sha256_file(run / NAME),
        "method": config.get("method"),
        "stage": stages[-1] if stages else None,
        "teacher": ", ".join(map(str, teachers)) or None,
        "base_student": base,
        "data": [Path(source["path"]).name for source in config.get("data", {}).get("sources", [])],
        "licences": {
            **{f"teacher {path.name}": licence_of(path) for path in teachers},
            **({"base student": licence_of(Path(base))} if base else {}),
        },
        "run_versions": manifest["versions"],
    }


def _scores(student: Path) -> dict[str, Any]:
    """What the bench measured of the student, where it lies beside it."""
    found = student.with_name(f"{student.resolve().name}-bench") / "bench.json"
    if not found.is_file():
        return {}
    results = read_json(found)["results"].values()
    return {
        "scores": {
            result["score"]["title"]: {
                "score": result["score"]["score"],
                "questions": result["score"]["n"],
                "interval_95": [result["interval"]["low"], result["interval"]["high"]],
            }
            for result in results
        }
    }

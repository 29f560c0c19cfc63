"""`genrecal plan` and `--dry-run` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import cli
from tests.tiny import TinyData, TinyPair

runner = CliRunner()


@pytest.fixture
def config(tiny_pair: TinyPair, tiny_data: TinyData, tmp_path: Path) -> Path:
    content = {
        "student": str(tiny_pair.student),
        "teacher": str(tiny_pair.teacher),
        "output": str(tmp_path / "run"),
        "data": {"sources": [{"path": str(tiny_data.path)}]},
        "engine": {"precision": "fp32"},
        "stages": {"recalibrate": {"micro_batch": 2, "accumulation": 3}},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(*words: str | Path) -> str:
    result = runner.invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def fails(*words: str | Path) -> str:
    result = runner.invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def test_data_on_disk_is_counted(config: Path, tiny_data: TinyData, tmp_path: Path) -> None:
    printed = run("plan", config, "--json", tmp_path / "plan.json")
    assert "optimizer steps" in printed
    plan = json.loads((tmp_path / "plan.json").read_text())
    first, _, last = plan["stages"]
    assert first["samples"] == tiny_data.samples
    assert last["samples"] == tiny_data.without_general_vqa
    assert first["steps"] == round(tiny_data.samples / 6)
    assert first["parameters"]["trained"].keys() == {"Recalibrator"}
    assert first["fit"]["fits"]
    assert not (tmp_path / "run").exists()


def test_lengths_may_be_given(config: Path, tmp_path: Path) -> None:
    words = ("--samples", "1000", "--tiles", "1", "--tiles", "3", "--ranks", "4", "--gpu", "h100")
    run("plan", config, *words, "--json", tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["machine"]["ranks"] == 4
    assert plan["stages"][0]["steps"] == round(1000 / 24)
    assert [row["tiles"] for row in plan["images"]] == [1, 3]
    less, more = (row["flops"]["distill"] for row in plan["images"])
    assert less < more
    assert plan["stages"][0]["communication"]["micro_step"]["reduce-scatter"] > 0


def test_a_dry_run_trains_nothing(config: Path, tmp_path: Path) -> None:
    assert "nothing was trained" in run("distill", config, "--dry-run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--gpu", "h999"), "unknown GPU"),
        (("--tiles", "-1"), "tiles"),
        (("--set", "data.sources=[{path: nowhere.json}]"), "Give --samples"),
        (("--ranks", "0"), "ranks"),
    ],
)
def test_errors(config: Path, words: tuple[str, ...], part: str) -> None:
    assert part in fails("plan", config, *words)


def test_a_model_that_is_nowhere(config: Path) -> None:
    result = runner.invoke(cli.app, ["plan", str(config), "--set", "student=models/absent"])
    assert result.exit_code == 4
    assert "--models" in result.stderr

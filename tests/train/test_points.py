"""Points on the way: which steps, what is kept there, and scores that a kill does not lose or repeat."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError

from genrecal.core.config import load_config
from genrecal.core.errors import ConfigError, TrainError
from genrecal.core.files import read_json, write_json
from genrecal.core.manifest import write_manifest
from genrecal.data.batch import collate_one
from genrecal.data.mixture import read_mixture
from genrecal.data.pair import PairReader
from genrecal.models.processors import load_model, load_processor
from genrecal.train import points
from genrecal.train.artifacts import save_stage
from genrecal.train.comparison import Comparison
from genrecal.train.engine import engine_config
from genrecal.train.points import (
    EvaluateConfig,
    Point,
    evaluate_points,
    read_points,
    require_sets,
    snapshot_steps,
)
from genrecal.train.settings import RunConfig
from genrecal.train.setup import build_stage
from genrecal.train.snapshots import save_point
from tests.bench.tiny_sets import mmb_row, mmvet_row, write_mmb, write_mmvet
from tests.tiny import TinyPair
from tests.train.conftest import WriteConfig

STAGES = (("recalibrate", False), ("distill", True))
MIDDLE = Point(number=2, stage="distill", percent=50, step=10)


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (100, 0.2, {20: 20, 40: 40, 60: 60, 80: 80, 100: 100}),
        (7, 0.2, {1: 20, 3: 40, 4: 60, 6: 80, 7: 100}),
        (3, 0.2, {1: 40, 2: 60, 3: 100}),  # 40% is nearest to a third
        (1, 0.2, {1: 100}),
        (10, 0.3, {3: 30, 6: 60, 9: 90, 10: 100}),
        (10, 1.0, {10: 100}),
        (1000, 0.01, {10 * percent: percent for percent in range(1, 101)}),
    ],
)
def test_which_steps(steps: int, every: float, expected: dict[int, int]) -> None:
    found = snapshot_steps(steps, every)
    assert found == expected
    assert list(found) == sorted(found)


def test_a_missing_set_is_said_before_training(tmp_path: Path) -> None:
    settings = EvaluateConfig(sets={"mmb": tmp_path / "gone.tsv"})
    with pytest.raises(ConfigError, match=r"evaluate\.sets\.mmb: .*gone\.tsv: no such test set"):
        require_sets(settings)
    with pytest.raises(ValidationError):
        EvaluateConfig(sets={"mathvista": tmp_path})
    with pytest.raises(ValidationError):
        EvaluateConfig(sets={})


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """This process as the only rank."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_point_keeps_the_merged_student_once(
    write_config: WriteConfig, tiny_pair: TinyPair, tmp_path: Path, one_rank: None
) -> None:
    config = load_config(write_config("points", zero_stage=0), RunConfig)
    stage = config.plan("distill")
    reader = PairReader(
        read_mixture(config.data.sources)[:4],
        student=load_processor(config.student),
        teachers=[load_processor(tiny_pair.teacher)],
        max_tokens=4096,
    )
    probe = collate_one(
        [reader[index].student for index in range(2)], padding=reader.student.tokenizer.pad_token_id
    )
    models = build_stage(
        config,
        stage,
        student_folder=config.student,
        recalibrator_folder=None,
        engine_settings=engine_config(config.engine, config.optimizer, config.stage("distill")),
        comparison=Comparison(),
    )

    save = partial(
        save_stage,
        models,
        student_folder=config.student,
        probe=probe,
        precision="fp32",
        code=config.code(config.student),
    )

    def train(value: float) -> None:
        """What a step changes: LoRA's second factor, which starts at zero."""
        with torch.no_grad():
            for name, parameter in models.objective.student.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(value)

    def keep(percent: int) -> Path:
        point = Point(number=2, stage="distill", percent=percent, step=percent // 10)
        save_point(tmp_path, point, student=models.objective.student, save=save)
        return point.snapshot(tmp_path)

    train(0.01)
    kept = keep(40)
    inputs = {"input_ids": probe.input_ids_BS, "attention_mask": probe.attention_mask_BS, **probe.vision}
    with torch.no_grad():
        expected = models.objective.student.eval()(**inputs).logits
        found = load_model(kept / "student").eval()(**inputs).logits
        before = load_model(config.student).eval()(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 1e-2
    manifest = read_json(kept / "manifest.json")
    assert (manifest["stage"], manifest["steps"], manifest["percent"]) == ("distill", 4, 40)

    # A resumed run passes the same place again.
    train(0.5)
    assert keep(40) == kept and read_json(kept / "manifest.json") == manifest
    # The stage leaves the student of its last step itself.
    assert not keep(100).exists()
    # What has its score is not kept again.
    write_json(tmp_path / "points.json", [{"number": 2, "stage": "distill", "percent": 60}])
    assert not keep(60).exists()
    models.objective.student.requires_grad_(False)
    assert not keep(80).exists()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    folder = tmp_path_factory.mktemp("sets")
    rows = [mmb_row(number, ["red", "green"], "A") for number in range(1, 5)]
    vet = {f"v1_{number}": mmvet_row(number, "blue", "rec") for number in range(3)}
    return EvaluateConfig(
        every=0.5,
        sets={"mmb": write_mmb(folder / "mmb.tsv", rows), "mmvet": write_mmvet(folder / "vet", vet)},
        limit=2,
    )


@pytest.fixture(scope="module")
def student(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student with short answers."""
    folder = tmp_path_factory.mktemp("short") / "student"
    shutil.copytree(tiny_pair.student, folder)
    write_json(folder / "generation_config.json", {"do_sample": False, "max_new_tokens": 3})
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A finished run whose points were scored in two calls: the first met a damaged snapshot."""

    folder: Path
    student: Path
    error: TrainError
    kept: list[dict[str, Any]]  # records after the first call
    records: list[dict[str, Any]]


@pytest.fixture(scope="module")
def scored(settings: EvaluateConfig, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    run = tmp_path_factory.mktemp("run")
    for number, (name, trains) in enumerate(STAGES, start=1):
        folder = run / "stages" / f"{number}-{name}"
        folder.mkdir(parents=True)
        if trains:
            shutil.copytree(student, folder / "student")
        write_manifest(folder, kind="stage", stage=name, steps=10 * number)
    snapshot = MIDDLE.snapshot(run)
    (snapshot / "student").mkdir(parents=True)  # nothing in it
    (snapshot.parent / ".snapshot.cut-short").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")  # as a rank of torchrun, which the scoring process is not
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(TrainError) as caught:
            evaluate_points(run, settings, stages=STAGES, student=student)
        kept = read_points(run)
        assert snapshot.is_dir()
        shutil.copytree(student, snapshot / "student", dirs_exist_ok=True)
        records = evaluate_points(run, settings, stages=STAGES, student=student)
    return Scored(folder=run, student=student, error=caught.value, kept=kept, records=records)


def test_every_point_has_its_score(scored: Scored) -> None:
    assert read_points(scored.folder) == scored.records
    places = [(one["number"], one["stage"], one["percent"], one["step"]) for one in scored.records]
    assert places == [
        (1, "recalibrate", 50, 5),
        (1, "recalibrate", 100, 10),
        (2, "distill", 50, 10),
        (2, "distill", 100, 20),
    ]
    assert [one["unchanged"] for one in scored.records] == [True, True, False, False]
    for one in scored.records:
        assert one["scores"].keys() == {"mmb", "mmvet"}
        assert one["questions"] == {"mmb": 2, "mmvet": 2}
    # The student that stage 1 leaves as it is was asked once.
    assert scored.records[0]["scores"] == scored.records[1]["scores"]
    folders = {path.name for path in (scored.folder / "points").iterdir()}
    assert folders == {"1-recalibrate-0", "2-distill-50", "2-distill-100"}
    bench = read_json(scored.folder / "points" / "2-distill-50" / "bench.json")
    assert bench["perf"] is None  # nothing is timed on the way
    assert scored.records[2]["scores"]["mmb"] == bench["results"]["mmb"]["score"]["score"]


def test_a_failure_says_why_and_the_same_call_goes_on(scored: Scored) -> None:
    assert re.search(r"2-distill-50: the student could not be scored \(.*config\.json", str(scored.error))
    assert scored.records[:2] == scored.kept


def test_a_snapshot_is_gone_once_it_is_scored(scored: Scored) -> None:
    assert not MIDDLE.snapshot(scored.folder).exists()
    assert not list((scored.folder / "points").rglob(".snapshot*"))
    assert (scored.folder / "stages" / "2-distill" / "student").is_dir()


def test_finished_points_are_not_repeated(
    scored: Scored,
    settings: EvaluateConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scored.folder, run)

    def again() -> list[dict[str, Any]]:
        return evaluate_points(run, settings, stages=STAGES, student=scored.student)

    monkeypatch.setattr(points.sys, "executable", "/nowhere/python")  # any scoring would fail
    assert again() == scored.records
    # The kill came between the record and the deletion of its snapshot.
    (MIDDLE.snapshot(run) / "student").mkdir(parents=True)
    assert again() == scored.records
    assert not MIDDLE.snapshot(run).exists()
    # A point whose student was never kept is said, and does not stop the others.
    write_json(run / "points.json", [scored.records[place] for place in (0, 1, 3)])
    assert len(again()) == 3
    assert "2-distill-50: the student was not kept there, no score" in capsys.readouterr().out

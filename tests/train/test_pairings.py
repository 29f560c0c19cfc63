"""Every teacher with every student: a step of each stage (paper, Figure 8b)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from genrecal.data.batch import PairedBatch, collate
from genrecal.data.pair import PairedSample
from genrecal.models.families import family_of, segment_of
from genrecal.models.processors import load_model
from genrecal.train.comparison import Comparison
from genrecal.train.engine import engine_config
from genrecal.train.settings import RunConfig
from genrecal.train.setup import build_stage, named
from genrecal.train.stages import METHODS, TERMS, Stage
from tests.families import NAMES, SAMPLES, ReadFamily, read_family
from tests.tiny import TinyData
from tests.train.conftest import as_one_rank, drive, folder_hash

# Each family once as teacher and once as student, none with itself.
SOME = [(teacher, NAMES[(place + 4) % len(NAMES)]) for place, teacher in enumerate(NAMES)]
# The tokenizer that is not byte-level, in either seat.
SOME_ALIGNED = [pair for pair in SOME if "gemma3" in pair]
ALL = [
    pytest.param(teacher, student, answer_input, marks=() if (teacher, student) in some else pytest.mark.full)
    for answer_input, some in (("features", SOME), ("aligned", SOME_ALIGNED))
    for teacher in NAMES
    for student in NAMES
]
RATE = 1e-3


@pytest.fixture(scope="module")
def reads(family_folders: dict[str, Path]) -> dict[str, ReadFamily]:
    """The samples as each family reads them."""
    return {name: read_family(name, folder) for name, folder in family_folders.items()}


def paired(teacher: ReadFamily, student: ReadFamily) -> PairedBatch:
    rows = [
        PairedSample(id=sample.id, domain=sample.domain, student=own, teachers=(other,))
        for (sample, _), own, other in zip(SAMPLES, student.rows, teacher.rows, strict=True)
    ]
    return collate(
        rows,
        student_padding=student.processor.tokenizer.pad_token_id,
        teacher_paddings=[teacher.processor.tokenizer.pad_token_id],
        teacher_blanks=[None],
    )


def total(objective: Any, stage: Stage, batch: PairedBatch) -> torch.Tensor:
    """What the loop sends back: each term over its count."""
    counts = objective.counts(batch)
    return objective(batch, {name: 1 / counts[TERMS[name].per] for name in stage.terms}).total


def trained_segments(stage: Stage, student: Any) -> set[str]:
    """Of the student, by what the stage says; a tied head goes by the name of the embedding."""
    tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
    if "student_full" in stage.trains:
        return {"vision_projector", "embedding", "body"} | (set() if tied else {"head"})
    return {"body"} if "student_lora" in stage.trains else set()


def ends_meet(objective: Any, batch: PairedBatch) -> bool:
    """Whether the teacher's end of each answer is given the student's feature at its own end of it."""
    student, teacher = batch.student, batch.teachers[0]
    marks_BS1 = torch.arange(student.input_ids_BS.numel()).reshape(*student.input_ids_BS.shape, 1)
    given_BA1 = objective.sources[0].read_student(marks_BS1, student, teacher).answer_BAD
    if given_BA1 is None:
        return False
    samples = torch.arange(len(batch.ids))
    last_B = student.question_lengths_B + student.answer_mask_BA.sum(1) - 1
    given_B1 = given_BA1[samples, teacher.answer_mask_BA.sum(1) - 1]
    return torch.equal(given_B1, marks_BS1[samples, last_B])


@pytest.mark.parametrize(("teacher", "student", "answer_input"), ALL)
def test_a_step_of_each_stage(
    teacher: str, student: str, answer_input: str, reads: dict[str, ReadFamily], tmp_path: Path
) -> None:
    """What the stage trains has gradients, moves and lowers the loss; all else stays."""
    folders = reads[student].folder, reads[teacher].folder
    config = RunConfig.model_validate(
        {
            "student": folders[0],
            "teacher": folders[1],
            "output": tmp_path / "run",
            "data": {"sources": [{"path": tmp_path / "none.json"}]},
            "recalibrator": {"answer_input": answer_input},
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
            "engine": {"precision": "fp32", "zero_stage": 0},
        }
    )
    batch = paired(reads[teacher], reads[student])
    for name in METHODS["genrecal"].stages:
        stage = config.plan(name)
        objective = build_stage(
            config,
            stage,
            student_folder=folders[0],
            recalibrator_folder=None,
            engine_settings=engine_config(config.engine, config.optimizer, config.stage(name)),
            comparison=Comparison(),
        ).objective.train()
        if stage.recalibrates:
            assert ends_meet(objective, batch) == (answer_input == "aligned")
        trained = named(objective, trainable_only=True)
        before = {name: value.detach().clone() for name, value in named(objective).items()}
        loss = total(objective, stage, batch)
        loss.backward()
        kind = family_of(objective.student.config)
        segments = {
            segment_of(name.removeprefix("student."), kind) for name in trained if name.startswith("student.")
        }
        assert segments == trained_segments(stage, objective.student)
        assert any(".recalibrators." in name for name in trained) == ("recalibrator" in stage.trains)
        for name, value in trained.items():
            assert value.grad is not None and torch.isfinite(value.grad).all(), name
            # B of LoRA starts at zero, so nothing reaches A in the first step.
            assert value.grad.any() or ".lora_A." in name, name
        torch.optim.AdamW(trained.values(), lr=RATE).step()
        moved = {name for name, value in named(objective).items() if not torch.equal(value, before[name])}
        assert moved <= trained.keys() and moved >= {name for name in trained if ".lora_A." not in name}
        with torch.no_grad():
            assert float(total(objective, stage, batch)) < float(loss)


@pytest.mark.full
@pytest.mark.parametrize("pairs", [SOME[first : first + 3] for first in range(0, len(SOME), 3)])
def test_a_run_with_each_family_as_student(
    pairs: list[tuple[str, str]], family_folders: dict[str, Path], tiny_data: TinyData, tmp_path: Path
) -> None:
    """As the command line does it: bf16 under ZeRO-3, features between the layers, the student saved."""
    stage = {"micro_batch": 4, "accumulation": 1, "epochs": 0.2}
    configs = []
    for teacher, student in pairs:
        config = {
            "student": str(family_folders[student]),
            "teacher": str(family_folders[teacher]),
            "output": str(tmp_path / student),
            "data": {"sources": [{"path": str(tiny_data.path)}], "max_tiles": 2, "max_pixels": 40 * 40},
            "recalibrator": {"layers": [0.5, 1.0]},
            "lora": {"rank": 4, "alpha": 4},
            "engine": {"zero_stage": 3, "precision": "bf16", "feature_samples": 2},
            "preflight": {"mode": "warn", "samples": 2},
            "stages": dict.fromkeys(METHODS["genrecal"].stages, stage),
        }
        configs.append(tmp_path / f"{student}.yaml")
        configs[-1].write_text(yaml.safe_dump(config), encoding="utf-8")
    before = {name: folder_hash(folder) for name, folder in family_folders.items()}
    done = drive(configs, as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    assert before == {name: folder_hash(folder) for name, folder in family_folders.items()}
    for path in configs:
        run = path.with_suffix("")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {row["stage"] for row in rows} == set(METHODS["genrecal"].stages)
        assert all(math.isfinite(row["loss"]) for row in rows)
        model, first = load_model(run / "student"), load_model(family_folders[path.stem])
        kind = family_of(model.config)
        changed = {
            segment_of(name, kind)
            for name, value in model.named_parameters()
            if not torch.equal(value, first.get_parameter(name).to(torch.bfloat16).to(value.dtype))
        }
        assert "vision_encoder" not in changed and changed >= {"vision_projector", "embedding", "body"}

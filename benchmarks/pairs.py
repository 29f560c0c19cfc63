"""The fixed parts: models that every cell starts from, and the data that it learns and is scored with.

    OUTPUT/pretrain/, OUTPUT/test/        drawn once
    OUTPUT/models/NAME/                   made once; a seed changes none of them
    OUTPUT/data/NAME-SEED/                a distillation set of every seed

As in practice there is one teacher and one student, and runs differ in data, order and new weights.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.images import set_images
from bench.run import run_bench
from bench.subject import open_subject
from bench.types import SubjectSpec
from benchmarks.settings import Plan
from genrecal.core.console import console
from genrecal.core.files import read_json, write_json
from genrecal.data.check import check_overlap
from genrecal.data.llava import read_llava
from genrecal.data.mixture import training_images
from genrecal.demo.datasets import TestSets, write_test_sets, write_training_set
from genrecal.demo.make import SETS, first_images, make_vlm
from genrecal.demo.settings import DemoConfig

# The seed of the pre-training set and of the test sets; distillation sets have the cells' seeds.
FIXED_SEED = 0
ANSWER_BATCH = 64


def draw_test_sets(plan: Plan, output: Path) -> None:
    """Draw the three test sets where they are not there yet, whole or not at all."""
    folder = output / "test"
    if not folder.is_dir():
        building = folder.with_name(".test-building")
        shutil.rmtree(building, ignore_errors=True)
        write_test_sets(building, seed=FIXED_SEED, questions=plan.questions)
        building.rename(folder)


def test_sets(output: Path) -> TestSets:
    folder = output / "test"
    return TestSets(mmb=folder / SETS["mmb"], mmvet=folder / SETS["mmvet"], mmmu=folder / SETS["mmmu"])


def pretrain_set(plan: Plan, output: Path) -> Path:
    path = output / "pretrain" / "conversations.json"
    if not path.is_file():
        write_training_set(
            output / "pretrain", seed=FIXED_SEED, images=plan.pretrain_images, split="pretrain"
        )
    return path


def distill_set(plan: Plan, output: Path, name: str, seed: int) -> Path:
    """A distillation set; no test image is in it, or this raises a DataError."""
    folder = output / "data" / f"{name}-{seed}"
    path = folder / "conversations.json"
    checked = folder / "no-overlap.json"
    if not checked.is_file():
        chosen = plan.data[name]
        write_training_set(
            folder, seed=seed, images=chosen.images, split="distill", wrong_answers=chosen.wrong_answers
        )
        sets = test_sets(output)
        found = check_overlap(
            training_images(read_llava(path)),
            (entry for part in (sets.mmb, sets.mmvet, sets.mmmu) for entry in set_images(part)),
        )
        found.require_none(where=str(path))
        write_json(checked, {"training_images": found.training_images, "test_images": found.testing_images})
    return path


def model_folder(output: Path, name: str) -> Path:
    return output / "models" / name / "pretrain" / "student"


def make_model(plan: Plan, output: Path, name: str) -> Path:
    """The model `name`, pre-trained where it is not there yet; and its scores beside it."""
    chosen, folder = plan.models[name], output / "models" / name
    data = first_images(pretrain_set(plan, output), chosen.images)
    # One rank of this very process: whoever calls has set the launcher's variables.
    config = DemoConfig(ranks=1, betas=plan.betas, pretrain_zero_stage=0)
    made = make_vlm(
        config,
        folder,
        shape=chosen.shape,
        warm=chosen.warm,
        pretrain=chosen.pretrain,
        data=data,
        seed=chosen.seed,
    )
    if not (folder / "scores.json").is_file():
        draw_test_sets(plan, output)
        sets = test_sets(output)
        spec = SubjectSpec(path=made, name=name, batch_size=ANSWER_BATCH)
        report = run_bench(
            open_subject(spec),
            {"mmb": sets.mmb, "mmmu": sets.mmmu, "mmvet": sets.mmvet},
            folder / "bench",
            timed_queries=0,
            quiet=True,
        )
        scores = {name: result.score.score for name, result in report.results.items()}
        write_json(folder / "scores.json", {"seed": chosen.seed, "scores": scores} | warm_score(folder))
        console.print(f"{name}: {scores}")
    return made


def warm_score(folder: Path) -> dict[str, float]:
    return {"encoder": read_json(folder / "warmed.json")["accuracy"]}


def as_one_rank() -> None:
    """This process is the only rank: training happens in it and starts no other."""
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        # 0 lets the store take a free port, so that several workers do not meet
        "MASTER_PORT": "0",
    }

"""The fixed parts: models that every cell starts from, and the data that it learns and is scored with.

    OUTPUT/pretrain/, OUTPUT/test/        drawn once
    OUTPUT/models/NAME/                   made once; a seed changes none of them. Those that the results were
                                          measured with lie in benchmarks/models/ and are taken from there
    OUTPUT/data/NAME-SEED/                a distillation set of every seed
    .../made-with.json                    in each of these: another plan does not take them for its own

As in practice there is one teacher and one student, and runs differ in data, order and new weights.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from bench.images import set_images
from benchmarks.answers import Examination
from benchmarks.made import begin, check_made, write_made
from benchmarks.settings import Plan
from genrecal.core.console import console
from genrecal.core.files import atomic_folder, read_json, write_json
from genrecal.core.types import Sample
from genrecal.data.check import check_overlap
from genrecal.data.llava import read_llava
from genrecal.data.mixture import training_images
from genrecal.demo.datasets import TestSets, write_test_sets, write_training_set
from genrecal.demo.make import SETS, first_images, make_vlm
from genrecal.demo.settings import DemoConfig

# NAME/plan.json, scores.json, student/: a model as it was made once, on one machine.
KEPT = Path(__file__).with_name("models")
# The seed of the pre-training set and of the test sets; distillation sets have the cells' seeds.
FIXED_SEED = 0
HELD_OUT_SEED = 7
HELD_OUT = "held-out"


def test_part(plan: Plan) -> dict[str, Any]:
    """What of the plan decides the test sets."""
    return {"questions": plan.questions, "held_out_images": plan.held_out_images}


def data_part(plan: Plan, name: str) -> dict[str, Any]:
    """What of the plan decides a distillation set, and that it has no image of the test sets."""
    return {"data": plan.data[name].model_dump(mode="json"), **test_part(plan)}


def model_part(plan: Plan, name: str) -> dict[str, Any]:
    """What of the plan decides a model."""
    return {
        "model": plan.models[name].model_dump(mode="json"),
        "pretrain_images": plan.pretrain_images,
        "betas": list(plan.betas),
    }


def draw_test_sets(plan: Plan, output: Path) -> None:
    """Draw the three test sets and the held-out samples where they are not there yet, whole or not at all."""
    folder = output / "test"
    if not check_made(folder, test_part(plan)):
        building = folder.with_name(".test-building")
        shutil.rmtree(building, ignore_errors=True)
        write_made(building, test_part(plan))
        write_test_sets(building, seed=FIXED_SEED, questions=plan.questions)
        write_training_set(building / HELD_OUT, seed=HELD_OUT_SEED, images=plan.held_out_images, split="test")
        building.rename(folder)


def held_out(output: Path) -> list[Sample]:
    """Fresh questions with right answers, put as the training sets put them."""
    return list(read_llava(output / "test" / HELD_OUT / "conversations.json"))


def test_sets(output: Path) -> TestSets:
    folder = output / "test"
    return TestSets(mmb=folder / SETS["mmb"], mmvet=folder / SETS["mmvet"], mmmu=folder / SETS["mmmu"])


def pretrain_set(plan: Plan, output: Path) -> Path:
    path = output / "pretrain" / "conversations.json"
    begin(path.parent, {"pretrain_images": plan.pretrain_images})
    if not path.is_file():
        write_training_set(
            output / "pretrain", seed=FIXED_SEED, images=plan.pretrain_images, split="pretrain"
        )
    return path


def distill_set(plan: Plan, output: Path, name: str, seed: int) -> Path:
    """A distillation set; no test image is in it, or this raises a DataError."""
    folder = output / "data" / f"{name}-{seed}"
    path = folder / "conversations.json"
    begin(folder, data_part(plan, name))
    checked = folder / "no-overlap.json"
    if not checked.is_file():
        chosen = plan.data[name]
        write_training_set(
            folder, seed=seed, images=chosen.images, split="distill", wrong_answers=chosen.wrong_answers
        )
        sets = test_sets(output)
        found = check_overlap(
            training_images(read_llava(path)),
            [
                *(entry for part in (sets.mmb, sets.mmvet, sets.mmmu) for entry in set_images(part)),
                *training_images(held_out(output)),
            ],
        )
        found.require_none(where=str(path))
        write_json(checked, {"training_images": found.training_images, "test_images": found.testing_images})
    return path


def model_folder(plan: Plan, output: Path, name: str) -> Path:
    """Where the model lies once it is made; a ConfigError where it was made with another plan."""
    folder = output / "models" / name
    check_made(folder, model_part(plan, name))
    return folder / "pretrain" / "student"


def is_kept(plan: Plan, name: str) -> bool:
    """Whether the model that the plan describes lies in KEPT."""
    path = KEPT / name / "plan.json"
    return path.is_file() and read_json(path) == model_part(plan, name)


def make_model(plan: Plan, output: Path, name: str) -> Path:
    """The model `name`, pre-trained where it is not there yet; and its scores beside it."""
    chosen, folder = plan.models[name], output / "models" / name
    begin(folder, model_part(plan, name))
    made = model_folder(plan, output, name)
    if not made.is_dir() and is_kept(plan, name):
        # Another machine's arithmetic would make it a little different, and its cells another experiment.
        shutil.copy2(KEPT / name / "scores.json", folder)
        with atomic_folder(made) as building:
            shutil.copytree(KEPT / name / "student", building, dirs_exist_ok=True)
        return made
    data = first_images(pretrain_set(plan, output), chosen.images)
    # One rank of this very process: whoever calls has set the launcher's variables.
    config = DemoConfig(ranks=1, betas=plan.betas, pretrain_zero_stage=0)
    if not made.is_dir():
        make_vlm(
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
        marks = Examination(test_sets(output), held_out(output)).marks(made, like=name)
        encoder = read_json(folder / "warmed.json")["accuracy"]
        write_json(folder / "scores.json", {"scores": marks.scores, "nats": marks.nats, "encoder": encoder})
        console.print(f"{name}: {marks.scores}")
    return made


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

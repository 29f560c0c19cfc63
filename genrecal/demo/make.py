"""The steps of the demo, each finished before or done now: data and the two VLMs.

Every step leaves a folder that is there whole or not at all, so a demo that was stopped goes on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.images import set_images
from genrecal.core.console import console
from genrecal.core.files import read_json, write_json
from genrecal.data.check import check_overlap
from genrecal.data.llava import read_llava
from genrecal.data.mixture import training_images
from genrecal.demo.datasets import TestSets, corpus, write_test_sets, write_training_set
from genrecal.demo.encoders import WarmEncoder, warm_encoder
from genrecal.demo.pair import InternVLShape, Qwen2VLShape, write_internvl, write_qwen2_vl
from genrecal.demo.settings import REGIMES, DemoConfig
from genrecal.train.label_store import Labels
from genrecal.train.launch import distill
from genrecal.train.settings import RunConfig
from genrecal.train.stages import StageConfig

SETS = {"mmb": "mmbench.tsv", "mmmu": "mmmu", "mmvet": "mm-vet"}
BATCH = 64
# Samples that a rank keeps tokenized: all of a distillation set, and not all of a pre-training set.
KEEP = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """Where one seed's data lies."""

    pretrain_teacher: Path
    pretrain_student: Path
    distill: Path
    truth: Path  # the distillation set without its wrong answers; nothing trains on it
    test: TestSets


def make_data(config: DemoConfig, folder: Path, *, seed: int) -> DemoData:
    """Draw the sets that are not there yet and check that no test image is in a training set.

    Raises:
        DataError: two sets have an image in common.
    """
    regime = REGIMES[config.regime]
    sets = {
        "pretrain": ("pretrain", config.teacher.images, 0.0),
        "distill": ("distill", config.distill_images or regime.images, regime.wrong_answers),
        "truth": ("distill", config.distill_images or regime.images, 0.0),
    }
    paths = {}
    for name, (split, images, wrong) in sets.items():
        path = folder / name / "conversations.json"
        if not path.is_file():
            console.print(f"data: drawing {images:,} images for {name}")
            write_training_set(
                folder / name,
                seed=seed,
                images=images,
                split=split,
                wrong_answers=wrong,  # type: ignore[arg-type]
            )
        paths[name] = path
    test = folder / "test"
    test_sets = TestSets(mmb=test / SETS["mmb"], mmvet=test / SETS["mmvet"], mmmu=test / SETS["mmmu"])
    if not test.is_dir():
        console.print(f"data: drawing three test sets of {config.test_questions} questions")
        write_test_sets(test, seed=seed, questions=config.test_questions)
    checked = folder / "no-overlap.json"
    if not checked.is_file():
        found = check_overlap(
            training_images([sample for path in paths.values() for sample in read_llava(path)]),
            (
                entry
                for path in (test_sets.mmb, test_sets.mmvet, test_sets.mmmu)
                for entry in set_images(path)
            ),
        )
        found.require_none(where=str(test))
        write_json(checked, {"training_images": found.training_images, "test_images": found.testing_images})
    return DemoData(
        pretrain_teacher=paths["pretrain"],
        pretrain_student=first_images(paths["pretrain"], config.student.images),
        distill=paths["distill"],
        truth=paths["truth"],
        test=test_sets,
    )


def first_images(conversations: Path, count: int) -> Path:
    """The rows about the first `count` images of a set, as a file beside it."""
    path = conversations.with_name(f"first-{count}.json")
    if not path.is_file():
        rows = read_json(conversations)
        kept = set(list(dict.fromkeys(row["image"] for row in rows))[:count])
        write_json(path, [row for row in rows if row["image"] in kept])
    return path


def make_vlm(
    config: DemoConfig,
    folder: Path,
    *,
    shape: InternVLShape | Qwen2VLShape,
    warm: WarmEncoder,
    pretrain: StageConfig,
    data: Path,
    seed: int,
) -> Path:
    """Fresh weights and tokenizer, a warmed image encoder, then SFT of all but that encoder.

    Returns:
        The folder of the finished VLM.
    """
    fresh = folder / "fresh"
    warmed = folder / "warmed.json"
    if not warmed.is_file():
        shutil.rmtree(fresh, ignore_errors=True)
        write = write_internvl if isinstance(shape, InternVLShape) else write_qwen2_vl
        write(fresh, corpus(seed), shape=shape, seed=seed)  # type: ignore[arg-type]
        accuracy = warm_encoder(fresh, seed=seed, settings=warm)
        console.print(f"{folder.name}: image encoder names {accuracy:.1%} of the unseen cells")
        write_json(warmed, {"accuracy": accuracy})
    run = run_config(
        config,
        method="finetune",
        student=fresh,
        teacher=None,
        data=data,
        output=folder / "pretrain",
        stages={"finetune": pretrain.model_copy(update={"exclude_domains": ()})},
        seed=seed,
        zero_stage=config.pretrain_zero_stage,
    )
    distill(run)
    return run.output / "student"


def run_config(
    config: DemoConfig,
    *,
    method: str,
    student: Path,
    teacher: Path | None,
    data: Path,
    output: Path,
    stages: dict[str, StageConfig],
    seed: int,
    zero_stage: int | None = None,
) -> RunConfig:
    """A run with the demo's engine settings: what a user would write in a YAML file."""
    return RunConfig.model_validate(
        {
            "method": method,
            "student": student,
            "teacher": teacher,
            "output": output,
            "seed": seed,
            "data": {"sources": [{"path": data}], "max_tokens": 512, "keep": KEEP},
            "relabel": {"batch": BATCH, "max_new_tokens": 64, "split": False},
            "recalibrator": config.recalibrator.model_dump(),
            "lora": config.lora.model_dump(),
            "optimizer": {"betas": config.betas},
            "engine": {
                "ranks": config.ranks,
                "zero_stage": config.zero_stage if zero_stage is None else zero_stage,
                "precision": "fp32",
                "gradient_checkpointing": False,
            },
            # A chain with few steps has a teacher that is none yet: its report shows that.
            "preflight": {"mode": "warn"},
            "stages": {name: stage.model_dump() for name, stage in stages.items()},
        }
    )


def labels_right(data: DemoData, labels: Path) -> dict[str, float]:
    """Shares of right answers in the distillation set: of the given ones and of the teacher's in `labels`."""
    truth = {row["id"]: row["conversations"][-1]["value"] for row in read_json(data.truth)}
    samples, own = read_llava(data.distill), Labels(labels)
    right = {
        "given": sum(sample.answer == truth[sample.id] for sample in samples),
        "teacher": sum((own.answer(sample) or sample.answer) == truth[sample.id] for sample in samples),
    }
    return {name: count / len(samples) for name, count in right.items()}

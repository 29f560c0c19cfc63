"""What a finished stage leaves behind, gathered from all ranks and written whole by rank 0.

RUN/stages/1-recalibrate/   recalibrator.safetensors, features.safetensors, manifest.json (kind "stage")
RUN/stages/2-distill/       the same, adapter/ (PEFT layout), student/ (merged), manifest.json
RUN/stages/3-finetune/      student/, manifest.json
RUN/student/                the last stage's student: plain `save_pretrained`
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from genrecal.core.files import atomic_folder
from genrecal.core.manifest import NAME, write_manifest
from genrecal.data.batch import Batch
from genrecal.models.lora import merge_lora
from genrecal.models.processors import load_model
from genrecal.models.remote_code import RemoteCode
from genrecal.train.engine import gather
from genrecal.train.setup import StageModels, named, recalibrator_file
from genrecal.train.writing import writing

FEATURES_FILE = "features.safetensors"
# Relative to the largest logit; the difference is rounding in the adapter's extra matrix products.
MERGE_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", NAME, "README.md")


def save_stage(
    models: StageModels,
    folder: Path,
    *,
    student_folder: Path,
    probe: Batch,
    precision: str,
    code: RemoteCode,
    facts: dict[str, Any],
    features: dict[str, torch.Tensor],
) -> None:
    """Write the stage's folder; called by every rank, as gathering needs them all.

    Args:
        models: the stage's models, trained.
        folder: the stage's folder.
        student_folder: the student that the stage started from.
        probe: samples for the proof that merging LoRA leaves the logits.
        precision: fp32 or bf16.
        code: whether the student's own code may run.
        facts: what the manifest says beside the files.
        features: tensors for the figures (features.py); empty where there is no Recalibrator.
    """
    objective = models.objective
    recalibrators = {
        recalibrator_file(place, depth): gather(named(recalibrator))
        for place, source in enumerate(objective.sources)
        for depth, recalibrator in enumerate(source.recalibrators)
    }
    student = gather(named(objective.student, trainable_only=models.adapter is not None))
    if dist.get_rank() == 0:
        with writing(folder), atomic_folder(folder) as temporary:
            for name, weights in recalibrators.items():
                save_file(weights, temporary / name)
            if features:
                save_file(features, temporary / FEATURES_FILE)
            if models.adapter is not None:
                base = load_model(student_folder, code=code)
                facts = facts | _save_merged(
                    models, student, temporary, base, student_folder, probe, precision
                )
            elif any(parameter.requires_grad for parameter in objective.student.parameters()):
                _save_student(objective.student, student, temporary / "student", student_folder)
            write_manifest(temporary, kind="stage", **facts)
    dist.barrier()


def _save_merged(
    models: StageModels,
    weights: dict[str, torch.Tensor],
    folder: Path,
    base: Any,
    student_folder: Path,
    probe: Batch,
    precision: str,
) -> dict[str, Any]:
    """Save the adapter, merge it into `base`, a fresh copy of the student, save that; the merge is proven."""
    assert models.adapter is not None
    adapter = folder / "adapter"
    # PEFT records the path that the base was loaded from, which means nothing on another machine.
    models.adapter.peft_config["default"].base_model_name_or_path = student_folder.name
    models.adapter.save_pretrained(
        str(adapter),
        state_dict={f"base_model.model.{name}": tensor for name, tensor in weights.items()},
        save_embedding_layers=False,
    )
    merged, difference = merge_lora(
        base, adapter, probe.to(torch.device("cpu"), base.dtype), tolerance=MERGE_TOLERANCE[precision]
    )
    _save_student(merged, None, folder / "student", student_folder)
    return {"merge": {"largest_relative_logit_difference": difference}}


def _save_student(model: Any, weights: dict[str, torch.Tensor] | None, folder: Path, source: Path) -> None:
    """`save_pretrained`, with tokenizer and processor files as they were in `source`."""
    model.save_pretrained(folder, state_dict=weights)
    written = {path.name for path in folder.iterdir()}
    for path in source.iterdir():
        if path.is_file() and path.name not in written and not any(path.match(kind) for kind in WEIGHT_FILES):
            shutil.copy2(path, folder / path.name)


def publish(source: Path, target: Path) -> None:
    """`source` as `target`, without a second copy on disk where the file system has hard links."""
    with atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

"""What a stage needs under the engine: models loaded, LoRA added, trainable parts marked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from genrecal.models.families import family_of, is_vision_encoder
from genrecal.models.lora import add_lora
from genrecal.models.processors import load_model
from genrecal.models.recalibrator import Recalibrator
from genrecal.models.vlm import text_config
from genrecal.train.engine import DTYPES, loading_for
from genrecal.train.objective import Objective
from genrecal.train.settings import RunConfig
from genrecal.train.stages import Stage

RECALIBRATOR_FILE = "recalibrator.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageModels:
    """The models of a stage; `adapter` is the PEFT view of the student where it has LoRA."""

    objective: Objective
    adapter: PeftModel | None


def build_stage(
    config: RunConfig,
    stage: Stage,
    *,
    student_folder: Path,
    recalibrator_folder: Path | None,
    engine_settings: dict[str, Any],
) -> StageModels:
    """Load and freeze everything, then free what the stage trains.

    Args:
        config: the run.
        stage: what trains.
        student_folder: the student as the stage before left it.
        recalibrator_folder: where the stage before left the Recalibrator; None: fresh weights.
        engine_settings: DeepSpeed's config, so that ZeRO-3 splits weights while they are read.
    """
    dtype = DTYPES[config.engine.precision]
    with loading_for(engine_settings):
        student = load_model(student_folder, dtype=dtype)
        teacher = load_model(config.teacher, dtype=dtype) if stage.reads_teacher and config.teacher else None
    family = family_of(student.config)
    for model in (student, teacher):
        if model is not None:
            model.requires_grad_(False)
    recalibrator = None
    if teacher is not None:
        recalibrator = build_recalibrator(config, student, teacher, recalibrator_folder)
        for parameter in recalibrator.parameters():
            # Parameters alone: in bf16 the rotary frequencies, a buffer, would lose their far positions.
            parameter.data = parameter.data.to(dtype)
        recalibrator.requires_grad_("recalibrator" in stage.trains)
    adapter = None
    if "student_lora" in stage.trains:
        torch.manual_seed(config.seed)
        adapter = add_lora(student, config.lora, family)
    if "student_full" in stage.trains:
        for name, parameter in student.named_parameters():
            parameter.requires_grad = not is_vision_encoder(name, family)
    if config.engine.gradient_checkpointing and len(set(stage.trains) - {"recalibrator"}):
        # Re-entrant: ZeRO-3 has split the weights again by the time that the backward pass recomputes.
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        student.enable_input_require_grads()
    objective = Objective(
        student=student,
        teacher=teacher,
        recalibrator=recalibrator,
        losses=stage.losses,
        answer_input=config.recalibrator.answer_input,
    )
    return StageModels(objective=objective, adapter=adapter)


def build_recalibrator(config: RunConfig, student: Any, teacher: Any, folder: Path | None) -> Recalibrator:
    """Fresh weights from the run's seed, or those in `folder`."""
    torch.manual_seed(config.seed)
    recalibrator = Recalibrator(
        config.recalibrator,
        student_body=student.get_decoder(),
        teacher_width=text_config(teacher).hidden_size,
    )
    if folder is not None:
        recalibrator.load_state_dict(load_file(folder / RECALIBRATOR_FILE))
    return recalibrator


def named(module: nn.Module, *, trainable_only: bool = False) -> dict[str, nn.Parameter]:
    """Parameters by name; tied ones once."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad or not trainable_only
    }

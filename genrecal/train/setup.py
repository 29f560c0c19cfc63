"""What a stage needs under the engine: models loaded, LoRA added, trainable parts marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from genrecal.models.families import family_of, is_vision_encoder
from genrecal.models.head_only import load_head
from genrecal.models.lora import add_lora
from genrecal.models.processors import load_model
from genrecal.models.recalibrator import Recalibrator, copy_blocks
from genrecal.models.vlm import recompute_activations, text_body, text_config
from genrecal.train.comparison import Comparison
from genrecal.train.engine import DTYPES, loading_for
from genrecal.train.objective import Objective
from genrecal.train.recalibrated import Source
from genrecal.train.settings import RunConfig
from genrecal.train.stages import Stage


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
    comparison: Comparison,
    heads_only: bool = False,
) -> StageModels:
    """Load and freeze everything, then free what the stage trains.

    Args:
        config: the run.
        stage: what trains.
        student_folder: the student as the stage before left it.
        recalibrator_folder: where the stage before left the Recalibrators; None: new ones.
        engine_settings: DeepSpeed's config, so that ZeRO-3 splits weights while they are read.
        comparison: what the comparison methods know about the pair.
        heads_only: the teachers' features are in a cache, so that their bodies are not loaded.
    """
    dtype = DTYPES[config.engine.precision]
    with loading_for(engine_settings):
        student = load_model(student_folder, dtype=dtype, code=config.code(config.student))
        teachers = [
            load_head(
                source.path,
                embeddings=config.recalibrator.answer_input != "features",
                dtype=dtype,
                code=config.code(source.path),
            )
            if heads_only
            else load_model(source.path, dtype=dtype, code=config.code(source.path))
            for source in config.sources
            if stage.reads_teacher
        ]
    return arrange_stage(
        config,
        stage,
        student=student,
        teachers=teachers,
        recalibrator_folder=recalibrator_folder,
        comparison=comparison,
    )


def arrange_stage(
    config: RunConfig,
    stage: Stage,
    *,
    student: Any,
    teachers: Sequence[Any],
    recalibrator_folder: Path | None,
    comparison: Comparison,
) -> StageModels:
    """`build_stage` without the loading: freeze `student` and `teachers`, then free what the stage trains.

    On the meta device, too: `genrecal plan` asks so what a stage costs (genrecal/plan/trace.py).
    """
    dtype = DTYPES[config.engine.precision]
    family = family_of(student.config)
    for model in (student, *teachers):
        model.requires_grad_(False)
    sources = [
        Source(
            teacher,
            build_recalibrators(config, student, teacher, recalibrator_folder, place)
            if stage.recalibrates
            else (),
            config=config.recalibrator,
            first_token=config.objective.first_token,
        )
        for place, teacher in enumerate(teachers)
    ]
    for source in sources:
        for parameter in source.recalibrators.parameters():
            # Parameters alone: in bf16 the rotary frequencies, a buffer, would lose their far positions.
            parameter.data = parameter.data.to(dtype)
        source.recalibrators.requires_grad_("recalibrator" in stage.trains)
    adapter = None
    if "student_lora" in stage.trains:
        torch.manual_seed(config.seed)
        adapter = add_lora(student, config.lora, family)
    for name, parameter in student.named_parameters():
        if "student_full" in stage.trains:
            parameter.requires_grad = not is_vision_encoder(name, family)
        elif "student_projector" in stage.trains:
            parameter.requires_grad = name.startswith(family.vision_projector)
    if config.engine.gradient_checkpointing and len(set(stage.trains) - {"recalibrator"}):
        recompute_activations(student)
    objective = Objective(
        student=student,
        sources=sources,
        losses=stage.losses,
        routes=[source.domains for source in config.sources] if sources else (),
        comparison=comparison,
    )
    return StageModels(objective=objective, adapter=adapter)


def recalibrator_file(place: int, depth: int) -> str:
    """The file of a Recalibrator; the first teacher's first depth, the paper's only one, has a plain name."""
    mark = "".join(f"-{kind}{number}" for kind, number in (("teacher", place), ("layer", depth)) if number)
    return f"recalibrator{mark}.safetensors"


def build_recalibrators(
    config: RunConfig, student: Any, teacher: Any, folder: Path | None, place: int
) -> list[Recalibrator]:
    """A Recalibrator for each depth: new ones from the run's seed, or those in `folder`."""
    torch.manual_seed(config.seed + 1000 * place)
    recalibrators = []
    for depth in range(len(config.recalibrator.layers)):
        recalibrator = Recalibrator(
            config.recalibrator,
            student_body=text_body(student),
            teacher_width=text_config(teacher).hidden_size,
        )
        if folder is not None:
            recalibrator.load_state_dict(load_file(folder / recalibrator_file(place, depth)))
        elif config.recalibrator.init == "student":
            blocks = list(text_body(student).layers[: config.recalibrator.blocks].parameters())
            with deepspeed.zero.GatheredParameters(blocks):
                copy_blocks(recalibrator, text_body(student))
        recalibrators.append(recalibrator)
    return recalibrators


def named(module: nn.Module, *, trainable_only: bool = False) -> dict[str, nn.Parameter]:
    """Parameters by name; tied ones once."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad or not trainable_only
    }

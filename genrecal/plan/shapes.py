"""Models without weights: built from config.json on the meta device, by transformers' own classes.

MODEL/config.json -> from_config on meta -> arranged as the stage trains it -> shapes that compute shapes
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForImageTextToText

from genrecal.core.errors import ModelError
from genrecal.models.families import family_of
from genrecal.models.processors import check_model_folder
from genrecal.train.comparison import Comparison
from genrecal.train.engine import DTYPES
from genrecal.train.objective import Objective
from genrecal.train.settings import RunConfig
from genrecal.train.setup import arrange_stage


def read_config(folder: Path) -> Any:
    """The transformers config of a model folder, which need not hold anything else.

    Raises:
        ModelError: no such folder or config, or a family that training does not know.
    """
    check_model_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # whatever a damaged or foreign file makes the libraries raise
        line = " ".join(str(error).split())[:300]
        raise ModelError(f"its config.json cannot be read ({line})", where=folder) from error
    family_of(config)
    return config


def model_on_meta(config: Any, dtype: torch.dtype) -> Any:
    """The whole model with parameters that have shapes alone."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


def as_if_on_cpu(module: nn.Module) -> None:
    """Turn every tensor of `module` from the meta device into one that says it lies on the CPU.

    It holds no more than before. Code that asks for a device's settings, as autocast does, knows the CPU.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Any] = {}

    def make(tensor: Any) -> Any:
        if id(tensor) not in made:
            with mode:
                new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad) if is_parameter else new
        return made[id(tensor)]

    def on_meta(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_meta

    for part in module.modules():
        # Beside parameters and buffers: rotary frequencies that are kept, a head that another module owns.
        for held in (part._parameters, part._buffers, vars(part)):
            for name, value in held.items():
                if on_meta(value):
                    held[name] = make(value)
                elif isinstance(value, tuple) and any(on_meta(one) for one in value):
                    held[name] = tuple(make(one) if on_meta(one) else one for one in value)


def stage_as_shapes(config: RunConfig, name: str, student: Any, teachers: Sequence[Any]) -> Objective:
    """The models of stage `name` as training arranges them (setup.py), without a number in them.

    Args:
        config: the run.
        name: a key of STAGES.
        student: its transformers config.
        teachers: theirs; those of stages that read none may be there too.
    """
    stage, dtype = config.plan(name), DTYPES[config.engine.precision]
    models = [model_on_meta(one, dtype) for one in (student, *(teachers if stage.reads_teacher else ()))]
    with torch.device("meta"):
        objective = arrange_stage(
            config,
            stage,
            student=models[0],
            teachers=models[1:],
            recalibrator_folder=None,
            comparison=Comparison(
                answer_only=config.answer_only,
                skew=config.objective.skew,
                image_token_id=student.image_token_id,
                shared_ids=_shared_ids(student, teachers) if "gold" in stage.losses else None,
            ),
        ).objective
    as_if_on_cpu(objective)
    return objective


def _shared_ids(student: Any, teachers: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """GOLD: as if one vocabulary had all entries of the other; how many it has, tokenizers alone know."""
    entries = min(one.get_text_config().vocab_size for one in (student, teachers[0]))
    return torch.arange(entries, device="cpu"), torch.arange(entries, device="cpu")

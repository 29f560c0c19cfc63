"""LoRA on the student's VLM-body (paper, section 4.1c), and its merge, proven."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from pydantic import Field
from torch import nn

from genrecal.core.config import Config
from genrecal.core.errors import ConfigError, ModelError
from genrecal.data.batch import Batch
from genrecal.models.families import Family
from genrecal.models.vlm import model_inputs

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraConfig(Config):
    """Where LoRA sits, and how large it is; rank, alpha and dropout are the paper's."""

    rank: int = Field(default=64, ge=1)
    alpha: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] = Field(default=PROJECTIONS, min_length=1)
    """Names of the linear layers in the student's body that get LoRA; all of attention and MLP by default."""


def add_lora(student: Any, config: LoraConfig, family: Family) -> PeftModel:
    """Put LoRA on the target layers of the VLM-body; nothing else of the student trains.

    `student` is changed in place: its own forward passes through the adapters.

    Raises:
        ConfigError: a target is no linear layer of the body.
    """
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in student.named_modules()
        if name.startswith(family.body) and isinstance(module, nn.Linear)
    }
    if unknown := [target for target in config.targets if target not in linear]:
        raise ConfigError(
            f"the student's body has no linear layer '{unknown[0]}'",
            where="lora.targets",
            fix=f"It has {', '.join(sorted(linear))}",
        )
    names = "|".join(re.escape(target) for target in config.targets)
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=rf"{re.escape(family.body)}.*\.({names})",
    )
    # In the student's precision: ZeRO-3 wants one for all that trains, and keeps fp32 master weights itself.
    return get_peft_model(student, settings, autocast_adapter_dtype=False)


@torch.no_grad()
def merge_lora(student: Any, adapter: Path, probe: Batch, *, tolerance: float) -> tuple[Any, float]:
    """Merge the adapter in folder `adapter` into `student` and show that the logits stay.

    Args:
        student: the model as it was when LoRA was added.
        adapter: a folder in PEFT's layout.
        probe: real samples; the logits at all their positions are compared.
        tolerance: the largest difference that is allowed, relative to the largest logit.

    Returns:
        The merged model and the largest relative difference.

    Raises:
        ModelError: the logits differ by more than `tolerance`.
    """
    model = PeftModel.from_pretrained(student, adapter).eval()
    inputs = model_inputs(student, probe)
    before = model(**inputs).logits
    merged = model.merge_and_unload()
    after = merged(**inputs).logits
    difference = float((before - after).abs().max() / before.abs().max())
    if difference > tolerance:
        raise ModelError(
            f"merging LoRA moves the logits by {difference:.2e} (limit {tolerance:.0e})", where=adapter
        )
    return merged, difference

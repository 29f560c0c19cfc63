"""Stages and methods as data: what trains, which loss terms, which data. The loop knows no stage by name.

genrecal     recalibrate -> distill -> finetune      (paper, section 3.3)
sft          adapt -> finetune                       the baseline with the same student updates
finetune     finetune                                SFT of all but the vision encoder, from any student
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from genrecal.core.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of training."""

    trains: tuple[str, ...]  # among recalibrator, student_lora, student_full
    losses: tuple[str, ...]  # among "align" (Algorithm 1), "regularize" (Algorithm 2), "sft"
    exclude_domains: tuple[str, ...] = ()

    @property
    def reads_teacher(self) -> bool:
        return "align" in self.losses


STAGES: dict[str, Stage] = {
    "recalibrate": Stage(trains=("recalibrator",), losses=("align", "regularize")),
    "distill": Stage(trains=("recalibrator", "student_lora"), losses=("align", "sft")),
    "adapt": Stage(trains=("student_lora",), losses=("sft",)),
    "finetune": Stage(trains=("student_full",), losses=("sft",), exclude_domains=("general_vqa",)),
}

METHODS: dict[str, tuple[str, ...]] = {
    "genrecal": ("recalibrate", "distill", "finetune"),
    "sft": ("adapt", "finetune"),
    "finetune": ("finetune",),
}


class StageConfig(Config):
    """How long and with which steps a stage trains."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the stage's data."""
    micro_batch: int = Field(default=4, ge=1)
    """Samples on one rank in one forward pass (paper: 4 / 2 / 4)."""
    accumulation: int = Field(default=16, ge=1)
    """Micro-batches in one optimizer step (paper: 16)."""
    lr_start: float = Field(default=1e-4, gt=0)
    """Learning rate of the first step; it decays linearly."""
    lr_end: float = Field(default=1e-5, ge=0)
    """Learning rate of the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises to lr_start first (paper: none named)."""
    exclude_domains: tuple[str, ...] | None = None
    """Domains that the stage leaves out; default: the stage's own (finetune: general_vqa)."""

"""Stages and methods as data: what trains, which losses, which data. The loop knows no stage by name.

genrecal          recalibrate -> distill -> finetune               (paper, section 3.3)
genrecal-no-reg   recalibrate-no-reg -> distill -> finetune        (paper, Table 3)
genrecal-through  recalibrate -> distill -> distill-finetune       ours: the last stage distils, too
sft               adapt -> finetune                                the baseline with the same student updates
minillm           distill-reverse-kl -> finetune                   (paper, Table 4)
distillm          distill-skewed-kl -> finetune                    (paper, Table 4)
llava-kd          kd-pretrain -> kd-sft -> kd-finetune             (paper, Table 4)
seqkd             adapt -> finetune, on the teacher's own answers
uld               distill-uld -> finetune                          optimal transport across tokenizers
gold              distill-gold -> finetune                         KL at common token ends
finetune          finetune                                         SFT of all but the vision encoder
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from genrecal.core.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One entry of `Stage.losses`: the terms it adds and what their sums are divided by."""

    terms: tuple[str, ...]
    per: str  # a key of `objective.py::term_counts`
    reads_teacher: bool = True


LOSSES: dict[str, Loss] = {
    "sft": Loss(terms=("sft",), per="student_tokens", reads_teacher=False),
    # GenRecal: through the Recalibrator and the teacher's head.
    "align": Loss(terms=("ar", "kl"), per="aligned_tokens"),
    "regularize": Loss(terms=("reg_ar", "reg_kl"), per="aligned_tokens"),
    # The comparison methods: the student's own head against the teacher's.
    "reverse_kl": Loss(terms=("reverse_kl",), per="positions"),
    "skewed_reverse_kl": Loss(terms=("skewed_reverse_kl",), per="positions"),
    "response_kl": Loss(terms=("response_kl",), per="student_tokens"),
    "visual_kl": Loss(terms=("visual_kl",), per="image_positions"),
    "relation": Loss(terms=("relation",), per="samples_with_images"),
    "uld": Loss(terms=("uld",), per="paired_tokens"),
    "gold": Loss(terms=("gold",), per="common_ends"),
}
TERMS: dict[str, Loss] = {term: loss for loss in LOSSES.values() for term in loss.terms}
# Not defined where only answers are distilled.
IMAGE_LOSSES = ("visual_kl", "relation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of training."""

    trains: tuple[str, ...]  # among recalibrator, student_lora, student_full, student_projector
    losses: tuple[str, ...]  # keys of LOSSES
    weights: dict[str, float] = field(default_factory=dict)  # of terms whose weight is not 1
    exclude_domains: tuple[str, ...] = ()

    @property
    def reads_teacher(self) -> bool:
        return any(LOSSES[loss].reads_teacher for loss in self.losses)

    @property
    def recalibrates(self) -> bool:
        return "align" in self.losses

    @property
    def distills(self) -> bool:
        """Whether the student learns through the Recalibrator."""
        return self.recalibrates and any(part.startswith("student") for part in self.trains)

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that are trained on."""
        return tuple(term for loss in self.losses for term in LOSSES[loss].terms)


# LLaVA-KD's three terms; the relation term at half the weight.
LLAVA_KD = ("sft", "response_kl", "visual_kl", "relation")
LLAVA_KD_WEIGHTS = {"relation": 0.5}

STAGES: dict[str, Stage] = {
    "recalibrate": Stage(trains=("recalibrator",), losses=("align", "regularize")),
    "recalibrate-no-reg": Stage(trains=("recalibrator",), losses=("align",)),
    "distill": Stage(trains=("recalibrator", "student_lora"), losses=("align", "sft")),
    "distill-finetune": Stage(
        trains=("recalibrator", "student_full"), losses=("align", "sft"), exclude_domains=("general_vqa",)
    ),
    "adapt": Stage(trains=("student_lora",), losses=("sft",)),
    "distill-reverse-kl": Stage(trains=("student_lora",), losses=("reverse_kl", "sft")),
    "distill-skewed-kl": Stage(trains=("student_lora",), losses=("skewed_reverse_kl", "sft")),
    "distill-uld": Stage(trains=("student_lora",), losses=("uld", "sft")),
    "distill-gold": Stage(trains=("student_lora",), losses=("gold", "sft")),
    "kd-pretrain": Stage(trains=("student_projector",), losses=LLAVA_KD, weights=LLAVA_KD_WEIGHTS),
    "kd-sft": Stage(trains=("student_full",), losses=("sft",)),
    "kd-finetune": Stage(
        trains=("student_full",),
        losses=LLAVA_KD,
        weights=LLAVA_KD_WEIGHTS,
        exclude_domains=("general_vqa",),
    ),
    "finetune": Stage(trains=("student_full",), losses=("sft",), exclude_domains=("general_vqa",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method: its stages, and what student and teacher must have in common."""

    stages: tuple[str, ...]
    needs: Literal["nothing", "teacher", "token_types"] = "teacher"
    labels: Literal["given", "teacher"] = "given"


METHODS: dict[str, Method] = {
    "genrecal": Method(stages=("recalibrate", "distill", "finetune")),
    "genrecal-no-reg": Method(stages=("recalibrate-no-reg", "distill", "finetune")),
    "genrecal-through": Method(stages=("recalibrate", "distill", "distill-finetune")),
    "sft": Method(stages=("adapt", "finetune"), needs="nothing"),
    "minillm": Method(stages=("distill-reverse-kl", "finetune"), needs="token_types"),
    "distillm": Method(stages=("distill-skewed-kl", "finetune"), needs="token_types"),
    "llava-kd": Method(stages=("kd-pretrain", "kd-sft", "kd-finetune"), needs="token_types"),
    "seqkd": Method(stages=("adapt", "finetune"), labels="teacher"),
    "uld": Method(stages=("distill-uld", "finetune")),
    "gold": Method(stages=("distill-gold", "finetune")),
    "finetune": Method(stages=("finetune",), needs="nothing"),
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
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a loss term, for instance {ar: 0}; default: the stage's own, mostly 1."""
    exclude_domains: tuple[str, ...] | None = None
    """Domains that the stage leaves out; default: the stage's own (finetune: general_vqa)."""

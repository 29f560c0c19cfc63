"""The demo's sizes and training settings; `demo.yaml` beside this file holds those of `make demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from genrecal.core.config import Config, load_config
from genrecal.demo.encoders import WarmEncoder
from genrecal.demo.pair import InternVLShape, Qwen2VLShape
from genrecal.models.lora import LoraConfig
from genrecal.models.recalibrator import RecalibratorConfig
from genrecal.train.stages import StageConfig


class Regime(Config):
    """A distillation set."""

    images: int
    """Drawn images; each gets two or three questions."""
    wrong_answers: float = Field(ge=0, lt=1)
    """Share of the samples that are given a plausible wrong answer."""


DEFAULTS = Path(__file__).with_name("demo.yaml")

# "scarce" is where a teacher is worth most: little data, partly mislabelled, seen by neither model.
REGIMES = {
    "scarce": Regime(images=700, wrong_answers=0.3),
    "plentiful": Regime(images=6000, wrong_answers=0.0),
}


class TeacherConfig(Config):
    """How the teacher is made: until it is clearly good."""

    shape: InternVLShape = InternVLShape()
    warm: WarmEncoder = WarmEncoder()
    images: int = 12000
    """Images of its pre-training set."""
    pretrain: StageConfig = StageConfig(micro_batch=64, accumulation=1, lr_start=3e-3, lr_end=1e-4)


class StudentConfig(Config):
    """How the student is made: briefly pre-trained, as the paper's students are."""

    shape: Qwen2VLShape = Qwen2VLShape()
    warm: WarmEncoder = WarmEncoder()
    images: int = 4000
    """Images of its pre-training set, the first ones of the teacher's."""
    pretrain: StageConfig = StageConfig(micro_batch=64, accumulation=1, lr_start=3e-3, lr_end=1e-4)


class DemoConfig(Config):
    """Everything that the demo can be told."""

    regime: Literal["scarce", "plentiful"] = "scarce"
    """The distillation set: scarce, partly mislabelled and new, or plentiful and clean."""
    distill_images: int | None = None
    """Images of the distillation set; default: the regime's."""
    ranks: int = 2
    """Processes that train."""
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    recalibrator: RecalibratorConfig = RecalibratorConfig()
    lora: LoraConfig = LoraConfig(rank=16, alpha=32, dropout=0.05)
    recalibrate: StageConfig = StageConfig(
        epochs=4, micro_batch=32, accumulation=1, lr_start=2e-3, lr_end=2e-4
    )
    """Stage 1."""
    distill: StageConfig = StageConfig(epochs=4, micro_batch=32, accumulation=1, lr_start=2e-3, lr_end=2e-4)
    """Stage 2; the SFT baselines' first stage takes the same steps."""
    finetune: StageConfig = StageConfig(epochs=4, micro_batch=32, accumulation=1, lr_start=1e-3, lr_end=1e-4)
    """Stage 3."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Of AdamW; runs of a few hundred steps want a shorter memory than the paper's default."""
    test_questions: int = 300
    """Questions of each test set."""
    pretrain_zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage of the two pre-trainings; on a CPU ZeRO-3 takes longer for every step."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """ZeRO stage of the distillation and of its baselines."""


def load_demo_config(path: Path | None, overrides: Sequence[str] = ()) -> DemoConfig:
    """The config in `path`, or the one of `make demo`, with `--set a.b=c` on top."""
    return load_config(path or DEFAULTS, DemoConfig, overrides)

"""The config of `genrecal distill`: one YAML file, every field with its help under it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from genrecal.core.config import Config
from genrecal.core.types import DOMAINS
from genrecal.data.mixture import SourceConfig
from genrecal.models.lora import LoraConfig
from genrecal.models.recalibrator import RecalibratorConfig
from genrecal.train.stages import METHODS, STAGES, StageConfig


class DataConfig(Config):
    """What the run trains on."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Files of conversations; all are mixed."""
    max_tokens: int = Field(default=4096, ge=8)
    """Longest sample in tokens, question and answer together, in either vocabulary."""
    workers: int = Field(default=0, ge=0)
    """Processes per rank that read ahead; 0: the training process reads."""


class OptimizerConfig(Config):
    """AdamW (paper, section 4.1c); the learning rates stand in the stages."""

    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""


class EngineConfig(Config):
    """How DeepSpeed runs the stages."""

    ranks: int = Field(default=1, ge=1)
    """Processes on this machine; under torchrun its count is used instead."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """ZeRO stage (paper: 3)."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of weights and activations; with bf16 DeepSpeed keeps fp32 master weights."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass (paper: yes)."""
    save_every: int = Field(default=100, ge=1)
    """Optimizer steps between checkpoints within a stage."""
    probe_every: int = Field(default=10, ge=1)
    """Optimizer steps between measurements of whether the Recalibrator reads the student."""


class RunConfig(Config):
    """One training run."""

    method: str = "genrecal"
    """genrecal, sft (the same student updates without a teacher) or finetune (full SFT alone)."""
    student: Path
    """Folder of the student."""
    teacher: Path | None = None
    """Folder of the teacher; needed where the method reads one."""
    output: Path
    """The run folder; the same command again resumes what is there."""
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    recalibrator: RecalibratorConfig = RecalibratorConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    stages: dict[str, StageConfig] = Field(default_factory=dict)
    """Settings by stage name: recalibrate, distill, adapt, finetune."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.method not in METHODS:
            raise ValueError(f"unknown method '{self.method}'; known are {', '.join(METHODS)}")
        for name, stage in self.stages.items():
            if name not in STAGES:
                raise ValueError(f"unknown stage '{name}'; known are {', '.join(STAGES)}")
            for domain in stage.exclude_domains or ():
                if domain not in DOMAINS:
                    raise ValueError(f"unknown domain '{domain}'; known are {', '.join(DOMAINS)}")
        if self.teacher is None and any(STAGES[name].reads_teacher for name in METHODS[self.method]):
            raise ValueError(f"the method '{self.method}' needs a teacher")
        return self

    def stage(self, name: str) -> StageConfig:
        """The settings of a stage, with the stage's own excluded domains where the config names none."""
        settings = self.stages.get(name, StageConfig())
        if settings.exclude_domains is None:
            settings = settings.model_copy(update={"exclude_domains": STAGES[name].exclude_domains})
        return settings

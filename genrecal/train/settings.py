"""The config of `genrecal distill`: one YAML file, every field with its help under it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from genrecal.core.config import Config
from genrecal.core.types import DOMAINS
from genrecal.data.features import FeatureType
from genrecal.data.source import MixtureConfig
from genrecal.models.lora import LoraConfig
from genrecal.models.recalibrator import RecalibratorConfig
from genrecal.models.remote_code import RemoteCode
from genrecal.train.cluster import LaunchConfig
from genrecal.train.points import EvaluateConfig
from genrecal.train.stages import IMAGE_LOSSES, LOSSES, METHODS, STAGES, TERMS, Stage, StageConfig
from genrecal.train.track import TrackerName


class TeacherConfig(Config):
    """One of several teachers; each gets a Recalibrator of its own and speaks through its own head."""

    path: Path
    """Folder of the teacher."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of its loss terms."""
    domains: tuple[str, ...] | None = None
    """Domains of the samples that it teaches; default: all."""


class DataConfig(MixtureConfig):
    """What the run trains on."""

    max_tokens: int = Field(default=4096, ge=8)
    """Longest sample in tokens, question and answer together, in either vocabulary."""
    workers: int = Field(default=0, ge=0)
    """Processes per rank that read ahead; 0: the training process reads."""
    keep: int = Field(default=0, ge=0)
    """Samples that each reading process keeps in memory, decoded and tokenized, for the next pass."""
    max_tiles: int | None = Field(default=None, ge=1)
    """Tiles at the most that an image is cut into, in models that cut; default: the model's own."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Pixels at the most that an image is scaled to, in models of any size; default: the model's own."""


class ObjectiveConfig(Config):
    """What the paper leaves open about the losses; docs/paper.md argues for the defaults."""

    first_token: bool = True
    """Whether the first answer token, predicted at the last question position, is a target of CE and KL."""
    regularize_in_distill: bool = False
    """Whether stage 2 keeps Algorithm 2's terms (Algorithm 3 has none)."""
    recalibrator_in_distill: Literal["train", "freeze"] = "train"
    """Whether the Recalibrator goes on training in stage 2."""
    skew: float = Field(default=0.1, gt=0, lt=1)
    """distillm: the student's share of the mixture that it is compared with."""


class OptimizerConfig(Config):
    """AdamW (paper, section 4.1c); the learning rates stand in the stages."""

    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""


class RelabelConfig(Config):
    """How the teacher answers the training questions, where its answers are the labels."""

    batch: int = Field(default=16, ge=1)
    """Questions on one rank at a time."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest answer."""
    keep_unended: bool = False
    """Learn an answer that did not end within `max_new_tokens` as if it had; else the given answer stays."""
    split: bool = True
    """Under ZeRO-3, split the teacher's weights over the ranks here too; false is faster where one rank holds
    it whole."""


class TeacherCacheConfig(Config):
    """The teacher's features on disk (docs/cache.md): stages that read them need the teacher's head alone."""

    path: Path
    """Their folder; with several teachers a folder teacher-0, teacher-1, ... in it for each."""
    dtype: FeatureType = "bf16"
    """What they are stored in: bf16, int8 with a scale for every 64 numbers, or fp32."""
    question_features: bool = False
    """Store the question's features too, which regularization reads; many times as large."""
    batch: int = Field(default=4, ge=1)
    """Samples on one rank at a time while it is filled."""
    split: bool = True
    """Under ZeRO-3, split the teacher's weights over the ranks then too; false is faster where one rank holds
    it whole."""
    shard_mib: float = Field(default=1024, gt=0)
    """About how large a file gets, in MiB; a rank that is killed loses no more than one."""


class PreflightConfig(Config):
    """The check of models and data before the first step (docs/cluster.md)."""

    mode: Literal["stop", "warn", "off"] = "stop"
    """What an error does: end the run, or be shown; off checks nothing."""
    samples: int = Field(default=24, ge=1)
    """Samples that are read, of every source and domain."""


class EngineConfig(Config):
    """How DeepSpeed runs the stages."""

    ranks: int = Field(default=1, ge=1)
    """Processes on this machine; under torchrun its count is used instead."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """ZeRO stage (paper: 3)."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of weights and activations; with bf16 DeepSpeed keeps fp32 master weights."""
    offload_params: Literal["none", "cpu"] = "none"
    """Where a rank's share of all weights lies between their uses, under ZeRO-3: on the GPU, or in the host's
    memory."""
    hpz_partition: int = Field(default=1, ge=1)
    """Under ZeRO-3, so many neighbouring ranks, as those of a node, hold all weights between them once more
    (ZeRO++ hpZ): frozen ones are then gathered within the node (docs/cache.md)."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass (paper: yes)."""
    save_every: int = Field(default=100, ge=1)
    """Optimizer steps between checkpoints within a stage: a run that dies loses no more than these."""
    save_minutes: float | None = Field(default=30.0, gt=0)
    """Minutes between checkpoints, where so many steps take longer; null: steps alone count."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints that are kept: the older ones are for the case that the newest is found altered."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """No rank takes a step whose loss or gradient is not finite; the run stops, or goes on without it."""
    max_skipped: int = Field(default=10, ge=0)
    """With `skip`: so many steps of a stage; one more stops the run."""
    probe_every: int = Field(default=10, ge=1)
    """Optimizer steps between measurements of whether the Recalibrator reads the student."""
    timeout_minutes: float = Field(default=30.0, gt=0)
    """A collective that a rank does not come to, as a hung one, fails after so long; so does a late start."""
    dead_after_seconds: float = Field(default=60.0, ge=10, le=600)
    """A rank without a sign of life for so long is dead, and all ranks end (docs/cluster.md)."""
    feature_samples: int = Field(default=10, ge=0)
    """Question-answer pairs whose features a stage with a Recalibrator leaves for the figures (paper: 10)."""

    @model_validator(mode="after")
    def _supported(self) -> EngineConfig:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("DeepSpeed trains in bf16 with fp32 sums from ZeRO stage 1 on: raise zero_stage")
        if self.zero_stage < 3 and (self.offload_params != "none" or self.hpz_partition > 1):
            raise ValueError("offload_params and hpz_partition need zero_stage 3")
        return self


class RunConfig(Config):
    """One training run."""

    method: str = "genrecal"
    """A key of METHODS (genrecal/train/stages.py): genrecal, sft, minillm, ..."""
    student: Path
    """Folder of the student."""
    teacher: Path | None = None
    """Folder of the teacher, where the method reads one."""
    teachers: tuple[TeacherConfig, ...] = ()
    """Several teachers, in place of `teacher`."""
    output: Path
    """The run folder; the same command again resumes what is there."""
    labels: Literal["given", "teacher"] = "given"
    """Whose answers are learned: those of the data, or the teacher's own (sequence-level distillation)."""
    answer_only: bool = False
    """minillm, distillm, llava-kd: distil answer tokens alone; needs equal tokenizers only (Appendix G)."""
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    relabel: RelabelConfig = RelabelConfig()
    teacher_cache: TeacherCacheConfig | None = None
    """Where the teacher's features are kept, for stage 2 and for later students; default: it runs live."""
    recalibrator: RecalibratorConfig = RecalibratorConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    preflight: PreflightConfig = PreflightConfig()
    launch: LaunchConfig = LaunchConfig()
    """Nodes and Slurm's settings (docs/cluster.md)."""
    remote_code: dict[str, RemoteCode] = Field(default_factory=dict)
    """Checkpoints whose own code may run, by their folder as named above (docs/checkpoints.md)."""
    stages: dict[str, StageConfig] = Field(default_factory=dict)
    """Settings by stage name (genrecal/train/stages.py): recalibrate, distill, finetune, ..."""
    evaluate: EvaluateConfig | None = None
    """Score the student at every 20% of each stage (the paper's Figure 10); default: no."""
    track: tuple[TrackerName, ...] = ()
    """Where the figures of metrics.jsonl go, too: tensorboard, wandb, trackio, mlflow."""
    track_project: str = Field(default="genrecal", min_length=1)
    """Project or experiment that the run is listed under there."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.method not in METHODS:
            raise ValueError(f"unknown method '{self.method}'; known are {', '.join(METHODS)}")
        for name, stage in self.stages.items():
            if name not in STAGES:
                raise ValueError(f"unknown stage '{name}'; known are {', '.join(STAGES)}")
            _known(stage.exclude_domains or (), DOMAINS, "domain")
            _known(tuple(stage.weights), tuple(TERMS), "loss term")
            _known(tuple(stage.weights), _possible_terms(STAGES[name]), f"term of {name}:")
        for teacher in self.teachers:
            _known(teacher.domains or (), DOMAINS, "domain")
        if self.teacher and self.teachers:
            raise ValueError("give teacher or teachers, not both")
        if not self.sources and (self.reads_teacher or self.learned_labels == "teacher"):
            raise ValueError(f"the method '{self.method}' needs a teacher")
        recalibrates = any(STAGES[name].recalibrates for name in METHODS[self.method].stages)
        if len(self.sources) > 1 and not recalibrates:
            raise ValueError(f"the method '{self.method}' takes one teacher; several are for genrecal")
        if self.teacher_cache and not recalibrates:
            raise ValueError(
                f"teacher_cache holds what the Recalibrator reads; the method '{self.method}' has none"
            )
        if self.answer_only and METHODS[self.method].needs != "token_types":
            served = ", ".join(name for name, method in METHODS.items() if method.needs == "token_types")
            raise ValueError(f"answer_only is for {served}; the method '{self.method}' has no such variant")
        if self.reads_teacher and not recalibrates and any(source.domains for source in self.sources):
            raise ValueError(f"the method '{self.method}' takes its teacher for all domains")
        return self

    @property
    def sources(self) -> tuple[TeacherConfig, ...]:
        """The teachers, however they were named."""
        return (TeacherConfig(path=self.teacher),) if self.teacher else self.teachers

    def code(self, folder: Path) -> RemoteCode:
        """What the code that a checkpoint brings may do; nothing, unless the config says otherwise."""
        return self.remote_code.get(str(folder), RemoteCode())

    @property
    def learned_labels(self) -> str:
        """Whose answers are learned; seqkd is nothing but the teacher's."""
        return "teacher" if METHODS[self.method].labels == "teacher" else self.labels

    @property
    def reads_teacher(self) -> bool:
        return any(STAGES[name].reads_teacher for name in METHODS[self.method].stages)

    def plan(self, name: str) -> Stage:
        """The stage `name` with what this config says of it."""
        stage, settings = STAGES[name], self.stage(name)
        trains, losses = stage.trains, stage.losses
        if stage.distills:
            if self.objective.recalibrator_in_distill == "freeze":
                trains = tuple(part for part in trains if part != "recalibrator")
            if self.objective.regularize_in_distill:
                losses = (*losses, "regularize")
        if self.answer_only:
            losses = tuple(loss for loss in losses if loss not in IMAGE_LOSSES)
        return replace(stage, trains=trains, losses=losses, weights=stage.weights | settings.weights)

    def stage(self, name: str) -> StageConfig:
        """The settings of a stage, with the stage's own excluded domains where the config names none."""
        settings = self.stages.get(name, StageConfig())
        if settings.exclude_domains is None:
            settings = settings.model_copy(update={"exclude_domains": STAGES[name].exclude_domains})
        return settings


def _possible_terms(stage: Stage) -> tuple[str, ...]:
    """The terms that a stage can train on, whatever else the config says."""
    return (*stage.terms, *LOSSES["regularize"].terms) if stage.recalibrates else stage.terms


def _known(names: tuple[str, ...], known: tuple[str, ...], kind: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} '{name}'; known are {', '.join(known)}")

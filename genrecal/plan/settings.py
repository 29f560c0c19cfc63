"""What a plan needs beside the run's config: the machine, and the data where it is not there to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from genrecal.core.config import Config
from genrecal.plan.gpus import GPUS, Gpu
from genrecal.train.stages import STAGES


class MachineConfig(Config):
    """The GPUs. Figures that are given replace those of the named GPU."""

    gpu: str = "a100-80gb"
    """A key of GPUS (genrecal/plan/gpus.py): a100-40gb, a100-80gb, h100, h200."""
    ranks: int | None = Field(default=None, ge=1)
    """GPUs of the run; default: the config's `engine.ranks`."""
    ranks_per_node: int = Field(default=8, ge=1)
    """GPUs of one machine."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory of a GPU."""
    tflops: float | None = Field(default=None, gt=0)
    """Its dense peak in the run's precision."""
    node_gb_s: float | None = Field(default=None, gt=0)
    """Gigabytes a second from one GPU to another in a node, one direction."""
    network_gb_s: float | None = Field(default=None, gt=0)
    """Gigabytes a second of each GPU's share of the network, one direction."""
    spare: float = Field(default=0.1, ge=0, lt=1)
    """Share of the memory that is left to the driver, the communication library and fragmentation."""

    @model_validator(mode="after")
    def _known(self) -> MachineConfig:
        if self.gpu not in GPUS:
            raise ValueError(f"unknown GPU '{self.gpu}'; known are {', '.join(GPUS)}")
        return self

    @property
    def figures(self) -> Gpu:
        named = GPUS[self.gpu]
        return Gpu(
            memory_gib=self.memory_gib or named.memory_gib,
            tflops=self.tflops or named.tflops,
            node_gb_s=self.node_gb_s or named.node_gb_s,
            network_gb_s=self.network_gb_s or named.network_gb_s,
            sheet=named.sheet,
        )


class WorkloadConfig(Config):
    """The data, where a plan is not to read it: means over all samples."""

    samples: int | None = Field(default=None, ge=1)
    """Samples of the mixture; default: those on disk are counted."""
    stage_samples: dict[str, int] = Field(default_factory=dict)
    """Samples by stage, where a stage leaves domains out (finetune: all but general_vqa). Stages that the
    run's method does not have are of no account."""
    question_tokens: int = Field(default=150, ge=1)
    """Text tokens of the question, with the chat template's; image tokens come on top."""
    answer_tokens: int = Field(default=200, ge=1)
    """Tokens of the answer, with the one that ends it."""
    tiles: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(5,), min_length=1)
    """Tiles of the image, overview counted; 0: text alone. The first is planned in full, all are compared."""
    pixels: int | None = Field(default=None, ge=1)
    """Pixels of the image for families that keep its size; default: 448 x 448 for every tile."""
    read: int = Field(default=64, ge=1)
    """Samples on disk whose lengths are measured, evenly spaced."""


class TimeConfig(Config):
    """How long it takes, or how fast it has to be."""

    utilisation: float = Field(default=0.35, gt=0, le=1)
    """Share of the peak that is reached, recomputation counted."""
    days: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Days that stages took, from and to, by their names joined with +: what utilisation do they imply? Those
    of stages that the run's method does not have are of no account."""


class PlanConfig(Config):
    """One plan; `genrecal plan --plan FILE` reads it from YAML."""

    machine: MachineConfig = MachineConfig()
    workload: WorkloadConfig = WorkloadConfig()
    time: TimeConfig = TimeConfig()
    models: Path | None = None
    """Where config.json folders lie for models that are not on disk, by the name of their folder."""

    @model_validator(mode="after")
    def _stages(self) -> PlanConfig:
        for name in (
            *self.workload.stage_samples,
            *(one for key in self.time.days for one in key.split("+")),
        ):
            if name not in STAGES:
                raise ValueError(f"unknown stage '{name}'; known are {', '.join(STAGES)}")
        return self

"""What is measured: models, data sets, settings (a pair with data), variants (a method with options), suites.

    setting + variant + seed = cell      the unit that is trained, scored and kept
    rows of cells, against one of them = suite      a table

Suites share cells: SFT on the scarce set is trained once and stands in several tables. `methods.yaml` holds
all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from genrecal.core.config import Config, load_config
from genrecal.demo.encoders import WarmEncoder
from genrecal.demo.pair import InternVLShape, Qwen2VLShape
from genrecal.models.lora import LoraConfig
from genrecal.train.stages import METHODS, StageConfig

DEFAULTS = Path(__file__).with_name("methods.yaml")
BASELINE = "baseline"


class ModelConfig(Config):
    """A model that is made once and then is the starting point of every cell that names it."""

    internvl: InternVLShape | None = None
    """An InternVL of this shape, or"""
    qwen2_vl: Qwen2VLShape | None = None
    """a Qwen2-VL of this one."""
    seed: int
    """Of its weights, its warm-up and its tokenizer: equal seeds and vocabularies give equal tokenizers."""
    warm: WarmEncoder
    images: int
    """Of the pre-training set, the first ones."""
    pretrain: StageConfig

    @model_validator(mode="after")
    def _one_family(self) -> ModelConfig:
        if (self.internvl is None) == (self.qwen2_vl is None):
            raise ValueError("give internvl or qwen2_vl")
        return self

    @property
    def shape(self) -> InternVLShape | Qwen2VLShape:
        shape = self.internvl or self.qwen2_vl
        assert shape is not None
        return shape


class DataSet(Config):
    """A distillation set; every seed draws its own."""

    images: int
    """Drawn images; each gets two or three questions."""
    wrong_answers: float = Field(ge=0, lt=1)
    """Share of the samples with a plausible wrong answer."""


class Steps(Config):
    """Length and learning rates of a stage; the same for every method that has the stage's part."""

    updates: int = Field(ge=1)
    """Optimizer steps."""
    lr_start: float
    lr_end: float


class Setting(Config):
    """A pair of models and the data that one learns from the other with."""

    teacher: str
    student: str
    data: str


class Variant(Config):
    """A row of a table: a method, and what differs from the method's defaults."""

    title: str
    method: str | None = None
    """A key of METHODS; none: the student as it came."""
    student_updates: float = Field(default=1.0, gt=0)
    """Times the student updates of the others; 1 but for comparisons at equal compute."""
    run: dict[str, Any] = Field(default_factory=dict)
    """Merged into the run's config: recalibrator, objective, labels, answer_only, stage weights."""

    @model_validator(mode="after")
    def _known(self) -> Variant:
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"unknown method '{self.method}'; known are {', '.join(METHODS)}")
        return self


class Suite(Config):
    """A table: cells side by side, each compared with one of them."""

    title: str
    rows: tuple[str, ...] = Field(min_length=2)
    """Each `setting/variant`."""
    against: tuple[str, ...] = Field(min_length=1)
    """The rows that the others are compared with: the one of the same setting."""
    differences: tuple[tuple[str, str], ...] = ()
    """Pairs of rows in a second table: by how much the first lies above the second."""


class Plan(Config):
    """All of methods.yaml."""

    questions: int
    """Of each of the three test sets."""
    held_out_images: int
    """Of a further set, whose right answers are guessed token by token."""
    pretrain_images: int
    """Of the set that all models were pre-trained on parts of."""
    batch: int
    """Samples of an optimizer step."""
    betas: tuple[float, float]
    lora: LoraConfig
    recalibrate: Steps
    """Stage 1 of GenRecal, in which no student learns."""
    distill: Steps
    """Stage 2 of GenRecal, and the first stage of the methods with two."""
    finetune: Steps
    """The last stage."""
    models: dict[str, ModelConfig]
    data: dict[str, DataSet]
    settings: dict[str, Setting]
    variants: dict[str, Variant]
    suites: dict[str, Suite]

    @model_validator(mode="after")
    def _names(self) -> Plan:
        for name, setting in self.settings.items():
            for kind, wanted, known in (
                ("model", setting.teacher, self.models),
                ("model", setting.student, self.models),
                ("data set", setting.data, self.data),
            ):
                if wanted not in known:
                    raise ValueError(f"the setting '{name}' names no {kind} that is there: '{wanted}'")
        for name, suite in self.suites.items():
            for row in (*suite.rows, *suite.against):
                setting, _, variant = row.partition("/")
                if setting not in self.settings or variant not in self.variants:
                    raise ValueError(f"the suite '{name}' has a row '{row}' that is not setting/variant")
            compared = {*suite.against, *(row for pair in suite.differences for row in pair)}
            if not compared <= set(suite.rows):
                raise ValueError(f"the suite '{name}' compares with a row that it does not have")
        return self

    def against(self, suite: str, row: str) -> str:
        """The row that `row` is compared with in a suite: of its setting, or the first one."""
        found = [one for one in self.suites[suite].against if one.split("/")[0] == row.split("/")[0]]
        return found[0] if found else self.suites[suite].against[0]


def load_plan(path: Path = DEFAULTS, overrides: Sequence[str] = ()) -> Plan:
    """The plan in `path`, with `--set a.b=c` on top."""
    return load_config(path, Plan, overrides)

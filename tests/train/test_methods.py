"""Every method through the engine, from config to student, and what its options leave on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genrecal.core.manifest import read_manifest, verify_manifest
from genrecal.data.llava import read_llava
from genrecal.models.processors import load_model, load_processor
from genrecal.train.labels import Labels
from genrecal.train.stages import METHODS, STAGES
from tests.kin import Kin
from tests.tiny import TinyData, TinyPair, write_data
from tests.train.conftest import CARD, Run, WriteConfig, as_one_rank, drive, environment, folder_hash

SAMPLES = 16
# Two teachers, every option that leads away from the paper's form, the Recalibrator frozen in stage 2.
MANY_OPTIONS: dict[str, Any] = {
    "recalibrator": {
        "answer_input": "aligned",
        "layers": [0.5, 1.0],
        "answer_dropout": 0.3,
        "answer_delay": 1,
        "question_projector": "separate",
        "init": "student",
        "norm": "rmsnorm",
    },
    "objective": {"first_token": False, "recalibrator_in_distill": "freeze", "regularize_in_distill": True},
    "stages": {"distill": {"epochs": 1.0, "weights": {"ar": 0.0, "reg_kl": 0.5}}},
    "engine": {"feature_samples": 5},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Two steps of eight samples."""
    return write_data(tmp_path_factory.mktemp("methods") / "data", samples=SAMPLES)


@pytest.fixture(scope="module")
def configs(write_config: WriteConfig, data: TinyData, tiny_pair: TinyPair, kin: Kin) -> dict[str, Path]:
    student = {"twin": {"student": str(kin.twin)}, "tiles": {"student": str(kin.tiles)}}
    teachers = [
        {"path": str(tiny_pair.teacher), "domains": ["knowledge", "general_vqa"]},
        {"path": str(kin.twin), "weight": 0.5, "domains": ["general_vqa", "science_math"]},
    ]
    options = MANY_OPTIONS | {"teacher": None, "teachers": teachers}
    short = {"stages": {"distill": {"epochs": 1.0}}, "relabel": {"max_new_tokens": 4, "batch": 6}}
    variants: dict[str, dict[str, Any]] = {
        "genrecal": {"changes": {"labels": "teacher"}},
        "genrecal-no-reg": {},
        "minillm": {"changes": student["twin"]},
        "minillm-zero_0": {"changes": student["twin"], "zero_stage": 0},
        "minillm-answer_only": {"changes": student["tiles"] | {"answer_only": True}},
        "distillm": {"changes": student["twin"], "gradient_checkpointing": True},
        "llava-kd": {"changes": student["twin"]},
        "llava-kd-zero_0": {"changes": student["twin"], "zero_stage": 0, "gradient_checkpointing": True},
        "llava-kd-answer_only": {"changes": student["tiles"] | {"answer_only": True}},
        "seqkd": {},
        "uld": {},
        "gold": {},
        "gold-zero_0": {"zero_stage": 0},
        "finetune": {},
        "options": {"method": "genrecal", "changes": options},
        "options-zero_0": {"method": "genrecal", "changes": options, "zero_stage": 0},
        "options-checkpointing": {
            "method": "genrecal",
            "changes": options,
            "zero_stage": 2,
            "gradient_checkpointing": True,
        },
    }
    return {
        name: write_config(
            f"methods-{name}",
            data=data.path,
            **{"method": next(one for one in sorted(METHODS, key=len, reverse=True) if name.startswith(one))}
            | {"changes": short}
            | settings
            if "method" not in settings
            else settings | {"data": data.path},
        )
        for name, settings in variants.items()
    }

"""Which runs the tests of methods and options look at: each method on a pair that it serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kin import Kin
from tests.tiny import TinyData, TinyPair

# Two steps of four.
SAMPLES = 8
SHORT = {
    "stages": {"distill": {"epochs": 1.0}},
    "relabel": {"max_new_tokens": 4, "batch": 3, "keep_unended": True},
    "engine": {"feature_samples": 3},
}
# Every option that leads away from the paper's form; the Recalibrator frozen in stage 2.
OPTIONS: dict[str, Any] = {
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
    "stages": {"distill": {"weights": {"ar": 0.0, "reg_kl": 0.5}}},
    "engine": {"feature_samples": 5},
}
ROUTES = (("knowledge", "general_vqa"), ("general_vqa", "science_math"))


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` with single settings changed, at any depth."""
    return config | {
        key: merged(config[key], value)
        if isinstance(value, dict) and isinstance(config.get(key), dict)
        else value
        for key, value in changes.items()
    }


def two_teachers(pair: TinyPair, kin: Kin) -> dict[str, Any]:
    """With a domain in common, one that only one has, and one that none has."""
    return {
        "teacher": None,
        "teachers": [
            {"path": str(pair.teacher), "domains": list(ROUTES[0])},
            {"path": str(kin.twin), "weight": 0.5, "domains": list(ROUTES[1])},
        ],
    }


def several_options(teachers: dict[str, Any]) -> dict[str, Any]:
    """All options but the one that draws at random, which two ranks draw differently."""
    return merged(merged(OPTIONS, teachers), {"recalibrator": {"answer_dropout": 0.0}})


def method_configs(
    write_config: Callable[..., Path], data: TinyData, kin: Kin, teachers: dict[str, Any]
) -> dict[str, Path]:
    """Config files by name: METHODS, variants of them, and what must not change their trajectory."""
    twin, tiles = {"student": str(kin.twin)}, {"student": str(kin.tiles)}
    aligned, several = merged(OPTIONS, teachers), several_options(teachers)
    configs: dict[str, Path] = {}

    def add(name: str, changes: dict[str, Any], *, method: str | None = None, **engine: Any) -> None:
        configs[name] = write_config(
            f"methods-{name}",
            method=method or name,
            data=data.path,
            changes=merged(SHORT, changes),
            **{"accumulation": 1, "zero_stage": 0} | engine,
        )

    add("genrecal", {"labels": "teacher"})
    add("genrecal-no-reg", {})
    add("genrecal-through", {"recalibrator": {"answer_input": "aligned"}})
    add("minillm", twin)
    add("minillm-zero_3", twin, method="minillm", zero_stage=3)
    add("minillm-answers", tiles | {"answer_only": True}, method="minillm")
    add("distillm", twin, zero_stage=2, gradient_checkpointing=True)
    add("llava-kd", twin)
    add("llava-kd-zero_3", twin, method="llava-kd", zero_stage=3, gradient_checkpointing=True)
    add("llava-kd-answers", tiles | {"answer_only": True}, method="llava-kd")
    add("sft", {})
    add("seqkd", {})
    add("uld", {})
    add("gold", {})
    add("gold-zero_3", {}, method="gold", zero_stage=3, gradient_checkpointing=True)
    add("finetune", {})
    add("dropping", aligned, method="genrecal")
    add("aligned", several, method="genrecal")
    add("aligned-zero_3", several, method="genrecal", zero_stage=3, gradient_checkpointing=True)
    return configs


# The same trajectory however it is computed.
SAME = {
    "minillm": "minillm-zero_3",
    "llava-kd": "llava-kd-zero_3",
    "gold": "gold-zero_3",
    "aligned": "aligned-zero_3",
}

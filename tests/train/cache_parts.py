"""A run with a cache of teacher features, its samples, and the features as the live teacher has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genrecal.core.config import Config
from genrecal.core.images import open_image
from genrecal.core.types import Sample
from genrecal.data.batch import collate_one
from genrecal.data.mixture import Mixture, read_mixture
from genrecal.data.pair import tokenize
from genrecal.models.processors import load_model, load_processor
from genrecal.models.vlm import layer_features
from genrecal.train.settings import RunConfig
from tests.tiny import TinyPair
from tests.train.method_runs import merged


def cached_config(root: Path, pair: TinyPair, path: Path, **changes: Any) -> RunConfig:
    """A run of `genrecal` in fp32 without ZeRO; `changes` are merged into it."""
    settings: dict[str, Any] = {
        "method": "genrecal",
        "student": str(pair.student),
        "output": str(root / "run"),
        "data": {"sources": [{"path": str(path)}]},
        "teacher_cache": {"path": str(root / "cache"), "dtype": "fp32", "batch": 3, "shard_mib": 1},
        "engine": {"zero_stage": 0, "precision": "fp32", "feature_samples": 2},
    }
    if "teachers" not in changes:
        settings["teacher"] = str(pair.teacher)
    return RunConfig.model_validate(merged(settings, changes))


def mixture_of(config: RunConfig) -> Mixture:
    return read_mixture(config.data)


@torch.no_grad()
def live_features(
    folder: Path, sample: Sample, depths: tuple[float, ...], limits: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of what predicts the answer, [A, L, D], and of the question, [Q, L, D]; the sample is alone."""
    bounds = {"max_tiles": limits.max_tiles, "max_pixels": limits.max_pixels}  # type: ignore[attr-defined]
    model, processor = load_model(folder), load_processor(folder, **bounds)
    row = tokenize(sample, processor, [open_image(image) for image in sample.images], max_tokens=4096)
    batch = collate_one([row], padding=0)
    z_SLD = torch.stack([z_BSD[0] for z_BSD in layer_features(model, batch, depths)], dim=1)
    question, answer = len(row.question_ids), len(row.answer_ids)
    return z_SLD[question - 1 : question - 1 + answer], z_SLD[:question]

"""bf16 through all three stages: eight micro-batches a step, summed in float32."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tests.train.conftest import Run


def test_the_losses_stay_near_those_of_fp32(runs: dict[str, Run]) -> None:
    for narrow, wide in zip(runs["bf16"].metrics, runs["plain"].metrics, strict=True):
        assert (narrow["stage"], narrow["step"]) == (wide["stage"], wide["step"])
        assert abs(narrow["loss"] - wide["loss"]) < 0.05 * wide["loss"]


def test_the_student_is_saved_whole(runs: dict[str, Run]) -> None:
    narrow, wide = (
        load_file(runs[name].folder / "student" / "model.safetensors") for name in ("bf16", "plain")
    )
    assert narrow.keys() == wide.keys()
    for name, weight in narrow.items():
        assert weight.shape == wide[name].shape
        assert torch.isfinite(weight).all()

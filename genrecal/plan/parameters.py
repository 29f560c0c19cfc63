"""Parameters of a stage, trained and frozen, by the paper's segments (section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from genrecal.models.families import family_of, segment_of
from genrecal.train.objective import Objective

SEGMENTS = {
    "vision_encoder": "vision encoder",
    "vision_projector": "projector",
    "embedding": "embedding",
    "body": "body",
    "head": "head",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How many numbers the models of a stage have."""

    trained: dict[str, int]  # by side and segment: "student body", "student LoRA", "Recalibrator"
    frozen: dict[str, int]
    largest: int  # of the largest single parameter
    largest_trained: int
    layer: int  # of the module whose own parameters are most

    @property
    def trained_total(self) -> int:
        return sum(self.trained.values())

    @property
    def frozen_total(self) -> int:
        return sum(self.frozen.values())

    @property
    def total(self) -> int:
        return self.trained_total + self.frozen_total


def count_parameters(objective: Objective) -> Parameters:
    """Count those of a stage's models; tied ones once."""
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for name, parameter in objective.named_parameters():
        counts = trained if parameter.requires_grad else frozen
        place = _place(name, objective)
        counts[place] = counts.get(place, 0) + parameter.numel()
    sizes = [parameter.numel() for parameter in objective.parameters()]
    return Parameters(
        trained=trained,
        frozen=frozen,
        largest=max(sizes),
        largest_trained=max(
            (parameter.numel() for parameter in objective.parameters() if parameter.requires_grad), default=0
        ),
        layer=max(_own(module) for module in objective.modules()),
    )


def _own(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _place(name: str, objective: Objective) -> str:
    if "recalibrators" in name:
        return "Recalibrator"
    if "lora_" in name:
        return "student LoRA"
    if name.startswith("student."):
        side, inner, model = "student", name.removeprefix("student."), objective.student
    else:
        _, number, _, inner = name.split(".", 3)
        side, model = "teacher", objective.sources[int(number)].teacher
    return f"{side} {SEGMENTS[segment_of(inner, family_of(model.config))]}"

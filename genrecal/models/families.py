"""What differs between the VLM families, as data; everything else is generic (`vlm.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genrecal.core.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where the paper's four segments (section 3.1) lie in a transformers model."""

    vision_encoder: str  # prefix of the vision encoder's parameters
    vision_projector: str  # prefix of the projector's parameters; may lie within the encoder's module
    body: str  # prefix of VLM-body's parameters


FAMILIES: dict[str, Family] = {
    "internvl": Family(
        vision_encoder="model.vision_tower.",
        vision_projector="model.multi_modal_projector.",
        body="model.language_model.",
    ),
    "qwen2_vl": Family(
        vision_encoder="model.visual.",
        vision_projector="model.visual.merger.",
        body="model.language_model.",
    ),
}


def family_of(config: Any) -> Family:
    """The family of a transformers config.

    Raises:
        ModelError: a family that is not in FAMILIES.
    """
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"'{config.model_type}' is no known VLM family", fix=f"Known are: {known}")
    return FAMILIES[config.model_type]


def is_vision_encoder(name: str, family: Family) -> bool:
    """Whether a parameter belongs to the vision encoder, which no stage trains; the projector does not."""
    return name.startswith(family.vision_encoder) and not name.startswith(family.vision_projector)

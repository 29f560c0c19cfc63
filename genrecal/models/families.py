"""What differs between the VLM families, as data; everything else is generic (`vlm.py`, `data/inputs.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from genrecal.core.errors import ModelError

Segment = Literal["vision_encoder", "vision_projector", "embedding", "body", "head"]
HEAD = "lm_head."


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where the paper's segments (section 3.1) lie in a transformers model, and its processor's ways."""

    processor: str
    """The class of its processor."""
    vision_encoder: str
    """Prefix of the vision encoder's parameters."""
    vision_projector: tuple[str, ...]
    """Prefixes of the projector's parameters; they may lie within the encoder's module."""
    body: str
    """Prefix of VLM-body's parameters, the word embeddings among them."""
    placeholders: tuple[str, ...] = ("image_token",)
    """Attributes of the processor that hold the texts which stand for an image or a video."""
    token_inputs: tuple[str, ...] = ()
    """What the model reads for every token beside its id and the attention mask."""
    uncut: dict[str, Any] = field(default_factory=dict)
    """Settings of the image processor that keep it from cutting a small image into tiles."""


QWEN_VL: dict[str, Any] = {
    "vision_encoder": "model.visual.",
    "body": "model.language_model.",
    "placeholders": ("image_token", "video_token"),
}

FAMILIES: dict[str, Family] = {
    "gemma3": Family(
        processor="Gemma3Processor",
        vision_encoder="model.vision_tower.",
        vision_projector=("model.multi_modal_projector.",),
        body="model.language_model.",
        # The template writes boi_token; the processor puts the image tokens behind it.
        placeholders=("image_token", "boi_token"),
        # 1 at image tokens, which see each other in both directions
        token_inputs=("token_type_ids",),
    ),
    "idefics3": Family(
        processor="Idefics3Processor",
        vision_encoder="model.vision_model.",
        vision_projector=("model.connector.",),
        body="model.text_model.",
        uncut={"do_image_splitting": False},
    ),
    "internvl": Family(
        processor="InternVLProcessor",
        vision_encoder="model.vision_tower.",
        vision_projector=("model.multi_modal_projector.",),
        body="model.language_model.",
        placeholders=("image_token", "video_token"),
    ),
    "llava_onevision": Family(
        processor="LlavaOnevisionProcessor",
        vision_encoder="model.vision_tower.",
        # The vector that ends a row of image tokens is a parameter of the model itself.
        vision_projector=("model.multi_modal_projector.", "model.image_newline"),
        body="model.language_model.",
        placeholders=("image_token", "video_token"),
    ),
    "nvlm_d": Family(
        processor="NvlmProcessor",
        vision_encoder="model.vision_tower.",
        vision_projector=("model.multi_modal_projector.",),
        body="model.language_model.",
    ),
    "qwen2_5_vl": Family(
        processor="Qwen2_5_VLProcessor", vision_projector=("model.visual.merger.",), **QWEN_VL
    ),
    "qwen2_vl": Family(processor="Qwen2VLProcessor", vision_projector=("model.visual.merger.",), **QWEN_VL),
    "qwen3_vl": Family(
        processor="Qwen3VLProcessor",
        # DeepStack: the encoder's middle layers reach the body's first ones through mergers of their own.
        vision_projector=("model.visual.merger.", "model.visual.deepstack_merger_list."),
        **QWEN_VL,
    ),
    "smolvlm": Family(
        processor="SmolVLMProcessor",
        vision_encoder="model.vision_model.",
        vision_projector=("model.connector.",),
        body="model.text_model.",
        uncut={"do_image_splitting": False},
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


def family_of_processor(processor: Any) -> Family:
    """The family that a processor is of, by its class.

    Raises:
        ModelError: no family in FAMILIES has such a processor.
    """
    kind = type(processor).__name__
    for family in FAMILIES.values():
        if family.processor == kind:
            return family
    known = ", ".join(family.processor for family in FAMILIES.values())
    raise ModelError(f"'{kind}' is the processor of no known VLM family", fix=f"Known are: {known}")


def segment_of(name: str, family: Family) -> Segment:
    """The segment that the parameter `name` of a whole model belongs to.

    Raises:
        ModelError: it belongs to none, so the model is not what FAMILIES says.
    """
    if name.startswith(family.vision_projector):
        return "vision_projector"
    if name.startswith(family.vision_encoder):
        return "vision_encoder"
    if name.startswith(f"{family.body}embed_tokens."):
        return "embedding"
    if name.startswith(family.body):
        return "body"
    if name.startswith(HEAD):
        return "head"
    raise ModelError(f"the parameter '{name}' belongs to no segment of its family")


def is_vision_encoder(name: str, family: Family) -> bool:
    """Whether a parameter belongs to the vision encoder, which no stage trains; the projector does not."""
    return name.startswith(family.vision_encoder) and not name.startswith(family.vision_projector)

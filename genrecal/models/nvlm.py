"""NVLM-D as an InternVL with another projector: transformers has no class of its own for it.

    tiles --(InternViT-6B)--> 2 x 2 patches as one --(norm, Linear, GELU, Linear)--> language model (Qwen2)

InternVL's projector is as wide as the language model and has biases; NVLM-D's is as wide as the language
model's MLP and has none. `genrecal convert` writes folders of this class, genrecal reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
)
from transformers.activations import ACT2FN

from genrecal.models.nvlm_processor import NvlmProcessor


class NvlmConfig(InternVLConfig):
    """InternVL's config with the width of the projector."""

    model_type = "nvlm_d"

    def __init__(self, projector_hidden_size: int | None = None, **kwargs: Any) -> None:
        """Take InternVL's fields and the projector's width.

        Args:
            projector_hidden_size: default: the width of the language model's MLP.
            kwargs: InternVL's fields.
        """
        super().__init__(**kwargs)
        if projector_hidden_size is None:
            projector_hidden_size = self.text_config.intermediate_size
        self.projector_hidden_size = projector_hidden_size


class NvlmProjector(nn.Module):
    """From 2 x 2 patches to one token of the language model."""

    def __init__(self, config: NvlmConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size * int(1 / config.downsample_ratio) ** 2
        self.layer_norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, config.projector_hidden_size, bias=False)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.projector_hidden_size, config.text_config.hidden_size, bias=False)

    def forward(self, patches_TNW: torch.Tensor) -> torch.Tensor:
        """[tiles, tokens, 4 x vision width] -> [tiles, tokens, width of the language model]."""
        return self.linear_2(self.act(self.linear_1(self.layer_norm(patches_TNW))))


class NvlmForConditionalGeneration(InternVLForConditionalGeneration):
    """InternVL's model with NVLM-D's projector."""

    config_class: Any = NvlmConfig

    def __init__(self, config: NvlmConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = NvlmProjector(config)


def register_nvlm() -> None:
    """Let transformers' Auto classes read folders with the model type `nvlm_d`; again is no harm."""
    AutoConfig.register(NvlmConfig.model_type, NvlmConfig, exist_ok=True)
    AutoModelForImageTextToText.register(NvlmConfig, NvlmForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(NvlmConfig, NvlmProcessor, exist_ok=True)

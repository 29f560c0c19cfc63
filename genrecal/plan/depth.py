"""Deep models from shallow ones: what 80 equal layers take, from traces of SHALLOW and of one more.

FLOPs, parameters and what lives at any one moment of a micro-step are a constant and a multiple of the number
of layers. So two short traces give the long one, exactly; at each moment separately, as another may be the
largest in the deep model. Where layers differ from each other, the model is traced whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from genrecal.plan.parameters import Parameters
from genrecal.plan.trace import Trace

SHALLOW = 2
# Families whose layers are all alike. Gemma 3 mixes two kinds of attention, Qwen2.5-VL two kinds of vision
# layers, and Qwen3-VL's first layers read image features.
ALIKE = ("idefics3", "internvl", "llava_onevision", "nvlm_d", "qwen2_vl", "smolvlm")
VISION_DEPTH = ("num_hidden_layers", "depth")


def may_be_shallow(models: list[Any]) -> bool:
    """Whether traces of shallow models say it all: layers alike, and more of them than a shallow one has."""
    return len(models) <= 2 and all(
        model.model_type in ALIKE and min(_depths(model)) > SHALLOW + 1 for model in models
    )


def with_layers(model: Any, layers: int) -> Any:
    """A copy of a transformers config with so many layers in the text model and in the vision encoder."""
    shallow = copy.deepcopy(model)
    text = shallow.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    setattr(shallow.vision_config, _vision_name(model), layers)
    return shallow


def deep_trace(shallow: Trace, deeper: Trace, models: list[Any]) -> Trace:
    """The trace of the models as they are."""
    phases = {
        phase: {
            part: round(size)
            for part, size in _deep(shallow.phases.get(phase, {}), deeper.phases[phase], models).items()
        }
        for phase in deeper.phases
    }
    return replace(deeper, flops=_deep(shallow.flops, deeper.flops, models), phases=phases, operations=[])


def deep_parameters(shallow: Parameters, deeper: Parameters, models: list[Any]) -> Parameters:
    """The parameters of the models as they are."""
    return replace(
        deeper,
        trained={part: round(n) for part, n in _deep(shallow.trained, deeper.trained, models).items()},
        frozen={part: round(n) for part, n in _deep(shallow.frozen, deeper.frozen, models).items()},
    )


def _deep(shallow: Mapping[str, float], deeper: Mapping[str, float], models: list[Any]) -> dict[str, float]:
    return {
        part: value + (value - shallow.get(part, 0)) * (_layers_of(part, models) - SHALLOW - 1)
        for part, value in deeper.items()
    }


def _layers_of(part: str, models: list[Any]) -> int:
    """The layers that `part` is a multiple of; the backward pass is the student's text model's."""
    text, vision = _depths(models[-1] if part.startswith("teacher") else models[0])
    return vision if "vision encoder" in part else text


def _depths(model: Any) -> tuple[int, int]:
    """Layers of the text model and of the vision encoder."""
    return model.get_text_config().num_hidden_layers, getattr(model.vision_config, _vision_name(model))


def _vision_name(model: Any) -> str:
    return next(name for name in VISION_DEPTH if hasattr(model.vision_config, name))
